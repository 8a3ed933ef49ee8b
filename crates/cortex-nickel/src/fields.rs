//! Fields that nobody knows. Contracts are open, so that a stray field is told here, with its place and what was probably meant.

use cortex_placement::{Problem, nearest};
use serde_json::Value;

const FILE: &[&str] = &["hosts", "models"];
const HOST: &[&str] = &["endpoint", "gpus", "memory_mb", "preload_order", "reserved_mb"];
const GPU: &[&str] = &["compute_capability", "name", "vram_mb"];
const SPOT: &[&str] = &["devices", "mode"];
const REPLICAS: &[&str] = &["max", "min"];
const MODEL: &[&str] = &[
    "aliases",
    "capabilities",
    "context",
    "dtype",
    "fallbacks",
    "idle_unload_s",
    "min_compute_capability",
    "min_device_vram_mb",
    "min_devices",
    "parallel",
    "placement",
    "priority",
    "quant",
    "replicas",
    "residency",
    "revision",
    "source",
    "tensor_parallel",
    "vram_mb",
];

/// Each unknown field of the evaluated file.
pub(crate) fn unknown(file: &Value) -> Vec<Problem> {
    let mut problems = Vec::new();
    strays(file, "models.ncl", FILE, &[], &mut problems);
    for (host, value) in entries(file, "hosts") {
        strays(value, "a host", HOST, &["hosts", host], &mut problems);
        for (at, gpu) in value["gpus"].as_array().into_iter().flatten().enumerate() {
            strays(gpu, "a GPU", GPU, &["hosts", host, "gpus", &at.to_string()], &mut problems);
        }
    }
    for (model, value) in entries(file, "models") {
        strays(value, "a model", MODEL, &["models", model], &mut problems);
        strays(&value["replicas"], "replicas", REPLICAS, &["models", model, "replicas"], &mut problems);
        for (host, spot) in entries(value, "placement") {
            strays(spot, "a model's place", SPOT, &["models", model, "placement", host], &mut problems);
        }
    }
    problems
}

fn entries<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    value.get(field).and_then(Value::as_object).into_iter().flatten().map(|(key, value)| (key.as_str(), value))
}

fn strays(value: &Value, what: &str, known: &[&str], path: &[&str], problems: &mut Vec<Problem>) {
    for key in value.as_object().into_iter().flat_map(|fields| fields.keys()).filter(|key| !known.contains(&key.as_str())) {
        let place: Vec<&str> = path.iter().copied().chain([key.as_str()]).collect();
        let problem = Problem::at(&place, format!("{what} has no field `{key}`")).label("unknown field");
        problems.push(match nearest(key, known.iter().copied()) {
            Some(near) => problem.note(format!("did you mean `{near}`?")),
            None => problem.note(format!("fields of {what}: {}", known.join(", "))),
        });
    }
}
