//! What the whole file's check says, mistake by mistake.

use std::collections::BTreeMap;

use cortex_placement::{Declared, Placement, check};
use serde_json::{Value, json};

/// A fleet of two hosts whose models are `models`; each gets the fields that contracts fill in.
fn declared(models: Value) -> Declared {
    let Value::Object(mut models) = models else { panic!("models are an object") };
    for model in models.values_mut() {
        let fields = model.as_object_mut().expect("a model is an object");
        fields.entry("residency").or_insert(json!("on_demand"));
        fields.entry("priority").or_insert(json!(100));
    }
    let gpu = |name: &str, vram_mb: u64, capability: &str| json!({ "name": name, "vram_mb": vram_mb, "compute_capability": capability });
    let beast = json!({ "endpoint": "http://beast:13131", "reserved_mb": 1024, "gpus": [gpu("RTX 5090", 32607, "12.0"), gpu("RTX 5090", 32607, "12.0")] });
    let benjy = json!({ "endpoint": "http://benjy:13131", "reserved_mb": 1024, "gpus": [gpu("RTX 4090", 24564, "8.9")], "preload_order": ["late"] });
    let mut hosts = json!({ "beast": beast, "benjy": benjy });
    if !models.contains_key("late") {
        hosts["benjy"].as_object_mut().expect("a host is an object").remove("preload_order");
    }
    serde_json::from_value(json!({ "hosts": hosts, "models": models })).expect("what the test wrote")
}

fn checked(models: Value, survive: bool) -> Result<Placement, String> {
    let wrong = |problems: Vec<_>| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    check(&declared(models), &BTreeMap::new(), survive).map_err(wrong)
}

fn told(models: Value) -> String {
    checked(models, false).expect_err("it has a mistake")
}

#[test]
fn names() {
    insta::assert_snapshot!(told(
        json!({ "a": { "aliases": ["x", "b", "a"] }, "b": { "aliases": ["x", "c"] }, "c": { "aliases": ["a"] } })
    ));
    insta::assert_snapshot!(told(json!({ "qwen": { "aliases": ["qwne"], "fallbacks": ["qwen", "qwnee", "other"] } })));
}

#[test]
fn places() {
    insta::assert_snapshot!(told(json!({
        "a": { "tensor_parallel": 2, "placement": { "benjy": {} } },
        "b": { "vram_mb": 40000, "placement": { "benjy": {}, "beast": { "devices": [2] } } },
        "c": { "vram_mb": 30000, "placement": { "benjy": {} } },
        "d": { "min_compute_capability": "9.0", "placement": { "benjy": {} } },
        "e": { "vram_mb": 99000, "tensor_parallel": 2 },
        "f": { "replicas": 3, "residency": "resident" },
        "g": { "placement": { "baest": {} } },
    })));
}

#[test]
fn two_residents_that_conflict_are_told_apart_from_those_that_do_not() {
    insta::assert_snapshot!(told(json!({
        "small": { "vram_mb": 100, "residency": "resident" },
        "large": { "vram_mb": 20000, "residency": "pinned", "placement": { "benjy": {} } },
        "other": { "vram_mb": 6000, "residency": "resident", "priority": 50, "placement": { "benjy": {} } },
        "third": { "vram_mb": 2000, "residency": "resident", "placement": { "benjy": {} } },
    })));
}

#[test]
fn a_model_that_nothing_makes_room_for() {
    insta::assert_snapshot!(told(json!({
        "held": { "vram_mb": 20000, "residency": "resident", "placement": { "benjy": {} } },
        "asked": { "vram_mb": 8000, "placement": { "benjy": {} } },
    })));
}

#[test]
fn a_fleet_that_does_not_survive() {
    let wrong = checked(
        json!({ "held": { "vram_mb": 30000, "residency": "resident" }, "asked": { "vram_mb": 8000, "placement": { "benjy": {} } } }),
        true,
    );
    insta::assert_snapshot!(wrong.unwrap_err());
}

#[test]
fn a_proven_placement_lists_what_each_host_loads_in_order() {
    let models = json!({
        "early": { "vram_mb": 2000, "residency": "resident", "priority": 900, "placement": { "benjy": {} }, "aliases": ["first"] },
        "late": { "vram_mb": 2000, "residency": "resident", "placement": { "benjy": {} } },
        "split": { "vram_mb": 50000, "tensor_parallel": 2, "residency": "pinned", "fallbacks": ["first"] },
        "asked": { "vram_mb": 8000, "context": 4096 },
    });
    let placement = checked(models, false).unwrap();
    placement.verify().unwrap();
    let preload = |host: &str| placement.hosts[host].preload.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(preload("benjy"), ["late", "early"], "preload_order names `late` first");
    assert_eq!(preload("beast"), ["split"]);
    let split = placement.hosts["beast"].models.iter().find(|spec| spec.model_id.as_str() == "split").unwrap();
    assert_eq!(split.devices, Some(vec![0, 1]));
    assert_eq!(placement.models["split"].fallbacks, ["early".into()]);
    assert_eq!(placement.routing.aliases["first"], "early".into());
}
