//! What the subcommands write.

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use cortex_core::{DeviceInfo, DeviceKind};
use cortex_core::{Discovery, FleetReport, GatewayReport, MemoryReport, ModelReport, ModelStatus, NodeReport, NodeState};
use cortex_placement::Placement;

use crate::program::{complaint, root, told};

#[test]
fn the_example_fleet_is_proven() {
    let shown = told(&root(), &["check"]);
    assert!(shown.starts_with("ok: models.ncl is proven: 4 models on 2 hosts, 3 replicas held always"), "{shown}");
    Placement::from_json(&told(&root(), &["render"])).unwrap().verify().unwrap();
}

#[test]
fn a_host_gets_its_own_part() {
    let benjy: serde_json::Value = serde_json::from_str(&told(&root(), &["render", "--host", "benjy"])).unwrap();
    assert_eq!(benjy["preload"], serde_json::json!(["qwen3-4b", "bge-small"]));
    assert_eq!(benjy["models"].as_array().unwrap().len(), 2);
    let wrong = complaint(&root(), &["render", "--host", "quad"]);
    assert!(wrong.contains("there is no host `quad`") && wrong.contains("beast, benjy"), "{wrong}");
}

#[test]
fn hosts_from_elsewhere_take_the_place_of_the_files_own() {
    let folder = tempfile::tempdir().unwrap();
    let small = r#"{"beast":{"endpoint":"http://beast:13131","gpus":[{"name":"T4","vram_mb":15360}]},"benjy":{"endpoint":"http://benjy:13131","gpus":[{"name":"T4","vram_mb":15360}]}}"#;
    let hosts = folder.path().join("facts.json");
    std::fs::write(&hosts, small).unwrap();
    let wrong = complaint(&root(), &["check", "--hosts", hosts.to_str().unwrap()]);
    assert!(wrong.contains("`qwen3-vl-8b` does not fit `beast`, even alone"), "{wrong}");
}

#[test]
fn a_lost_host_shows_who_depends_on_it() {
    let wrong = complaint(&root(), &["check", "--survive", "1"]);
    assert!(wrong.contains("without `benjy`: no host that may hold `bge-small` is left"), "{wrong}");
}

#[test]
fn a_model_is_explained_by_any_of_its_names() {
    insta::assert_snapshot!("explain", told(&root(), &["explain", "large"]));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fleet.json");
    let measured = |mb: Option<u64>| {
        let memory = MemoryReport { model: "qwen3-30b-a3b".into(), declared_mb: None, computed_mb: None, measured_mb: mb };
        std::fs::write(&file, serde_json::to_string(&FleetReport { memory: vec![memory], ..report(&[]) }).unwrap()).unwrap();
        let shown = told(&root(), &["explain", "large", "--fleet", file.to_str().unwrap()]);
        shown.lines().find(|line| line.trim_start().starts_with("measured")).unwrap_or_default().trim().to_owned()
    };
    assert_eq!(measured(Some(20_480)), "measured   20.0 GiB on a device at most, 30.3 GiB counted");
    assert_eq!(measured(Some(40_960)), "measured   40.0 GiB on a device at most, 30.3 GiB counted: vram_mb should be 81920 or more");
    assert_eq!(measured(None), "measured   not yet: no node has had it in memory since the gateway started");
    let wrong = complaint(&root(), &["explain", "qwen3-vl-8"]);
    assert!(wrong.contains("did you mean `qwen3-vl-8b`?"), "{wrong}");
}

#[test]
fn the_contracts_can_be_had_for_an_editor() {
    let contracts = told(&root(), &["contract"]);
    let model = &contracts[contracts.find("  Model = {").unwrap()..];
    for field in ["source", "vram_mb", "residency", "idle_unload_s"] {
        let line = model.lines().skip_while(|line| !line.trim_start().starts_with(&format!("{field} |"))).take(2).collect::<String>();
        assert!(line.contains("doc \""), "{field} has no doc");
    }
}

#[test]
fn a_plan_is_the_difference_to_the_running_fleet() {
    let folder = tempfile::tempdir().unwrap();
    let loaded = |id: &str, device: &str| ModelReport {
        id: id.into(),
        status: ModelStatus::Loaded,
        capabilities: vec![],
        architecture: None,
        parameters: None,
        context: None,
        devices: vec![device.to_owned()],
        memory_used_bytes: 1 << 30,
        generation: 3,
        load_s: None,
    };
    let fleet =
        report(&[("beast", 2, 32607, vec![loaded("stray", "cuda-dev-0")]), ("benjy", 1, 24564, vec![loaded("bge-small", "cuda-dev-0")])]);
    let file = folder.path().join("fleet.json");
    std::fs::write(&file, serde_json::to_string(&fleet).unwrap()).unwrap();
    let shown = told(&root(), &["plan", "--fleet", file.to_str().unwrap()]);
    let steps: Vec<&str> =
        shown.lines().skip(1).take_while(|line| *line != "memory").filter_map(|line| line.trim().split("   ").next()).collect();
    assert_eq!(steps, ["unload stray from beast:0", "load qwen3-vl-8b on beast:0", "load qwen3-4b on benjy:0"], "{shown}");
    let memory = "memory\n  bge-small on benjy: 1.0 GiB measured on a device, ";
    assert!(shown.contains(memory) && !shown.contains("stray on beast: "), "{shown}");
}

fn report(nodes: &[(&str, usize, u64, Vec<ModelReport>)]) -> FleetReport {
    let device = |index: usize, mb: u64| DeviceInfo {
        index,
        name: format!("cuda-dev-{index}"),
        kind: DeviceKind::Cuda,
        product: "card".into(),
        memory_total_bytes: mb << 20,
        compute_capability: Some("8.9".into()),
    };
    let node = |(name, devices, mb, models): &(&str, usize, u64, Vec<ModelReport>)| NodeReport {
        name: (*name).into(),
        endpoint: format!("http://{name}:13131"),
        state: NodeState::Ready,
        discovery: Some(Discovery {
            hostname: (*name).into(),
            os: String::new(),
            version: String::new(),
            boot_id: String::new(),
            driver_version: None,
            cuda_version: None,
            gpu_note: None,
            devices: (0..*devices).map(|index| device(index, *mb)).collect(),
            harnesses: vec![],
        }),
        health: None,
        models: models.clone(),
        placed: vec![],
        requests_in_flight: 0,
        tokens_per_second: None,
        seen_s_ago: None,
    };
    let gateway = GatewayReport { version: String::new(), uptime_s: 0.0, requests_in_flight: 0 };
    FleetReport { gateway, nodes: nodes.iter().map(node).collect(), memory: vec![] }
}

/// A thousand models on fifty hosts; fewer in a debug build, where they would take longer than the evaluation may. The time is
/// printed, not judged: it depends on the machine.
#[test]
fn a_large_fleet_is_proven_within_the_limits() {
    let folder = tempfile::tempdir().unwrap();
    let (models, hosts) = if cfg!(debug_assertions) { (100, 10) } else { (1000, 50) };
    std::fs::write(folder.path().join("models.ncl"), large(models, hosts)).unwrap();
    std::fs::write(folder.path().join("twelve.ncl"), large(12, 5)).unwrap();
    let timed = |file: &str| {
        let started = Instant::now();
        let shown = told(folder.path(), &["check", file]);
        (shown, started.elapsed())
    };
    let (small, small_time): (String, Duration) = timed("twelve.ncl");
    assert!(small.contains("12 models on 5 hosts"), "{small}");
    let (shown, time) = timed("models.ncl");
    assert!(shown.contains(&format!("{models} models on {hosts} hosts")), "{shown}");
    println!("12 models: {small_time:?}; {models} models: {time:?}");
}

fn large(models: usize, hosts: usize) -> String {
    let mut text = String::from("{\n  hosts = {\n");
    for host in 0..hosts {
        let gpu = "{ name = \"H100\", vram_mb = 81559, compute_capability = \"9.0\" }";
        let _ =
            writeln!(text, "    host-{host:02} = {{ endpoint = \"http://host-{host:02}:13131\", gpus = [{gpu}, {gpu}, {gpu}, {gpu}] }},");
    }
    text.push_str("  },\n  models = {\n");
    for model in 0..models {
        let residency = if model % 3 == 0 { "'resident" } else { "'on_demand" };
        let size = 4000 + (model * 7919) % 30000;
        let host = model % hosts;
        let _ = writeln!(
            text,
            "    \"model-{model:04}\" = {{ vram_mb = {size}, context = 8192, residency = {residency}, aliases = [\"alias-{model}\"], placement = {{ host-{host:02} = {{}}, host-{:02}.mode = 'auto }} }},",
            (host + 1) % hosts
        );
    }
    text.push_str("  },\n}\n");
    text
}

#[test]
fn hosts_and_their_places_may_be_split_over_files() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let host = |name: &str, models: &str| {
        let gpu = "{ name = \"L4\", vram_mb = 23034 }";
        format!("{{\n  hosts.{name} = {{ endpoint = \"http://{name}:13131\", gpus = [{gpu}] }},\n  models = {{ {models} }},\n}}\n")
    };
    write(
        "models.ncl",
        "(import \"beast.ncl\") & (import \"benjy.ncl\") & { models.m = { vram_mb = 9000, residency = 'resident, replicas = 2 } }",
    );
    write("beast.ncl", &host("beast", "m.placement.beast = {}"));
    write("benjy.ncl", &host("benjy", "m.placement.benjy = {}, n = { vram_mb = 9000, capabilities = ['rerank], placement.benjy = {} }"));
    let shown = told(folder.path(), &["check"]);
    assert!(shown.contains("2 models on 2 hosts, 2 replicas held always"), "{shown}");
    write("benjy.ncl", &host("benjy", "m = { placement.benjy = {}, vram_mb = 9001 }"));
    let wrong = complaint(folder.path(), &["check"]);
    assert!(wrong.contains("benjy.ncl:3:") || wrong.contains("models.ncl:1:"), "{wrong}");
    write("benjy.ncl", &host("benjy", "m.placement.benji = {}"));
    let wrong = complaint(folder.path(), &["check"]);
    assert!(wrong.contains("benjy.ncl:3:") && wrong.contains("did you mean `benjy`?"), "{wrong}");
}

#[test]
fn a_gguf_file_that_cannot_be_is_told_at_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let models = "{\n  hosts.a = { endpoint = \"http://a:1\", memory_mb = 9000 },\n  models.m = { source = \"m.gguf\" },\n}\n";
    std::fs::write(folder.path().join("models.ncl"), models).unwrap();
    let header = |fields: u64| [&b"GGUF\x03\0\0\0"[..], &[0; 8], &fields.to_le_bytes()].concat();
    for (bytes, why) in [
        (b"not a model".to_vec(), "does not begin as a GGUF file does"),
        (header(u64::MAX), "claims 18446744073709551615 fields in its header"),
        (header(7), "ends within its header"),
    ] {
        std::fs::write(folder.path().join("m.gguf"), bytes).unwrap();
        let wrong = complaint(folder.path(), &["check"]);
        assert!(wrong.contains(why) && wrong.contains("models.ncl:3:") && wrong.contains("say vram_mb"), "{wrong}");
    }
}

#[test]
fn a_broken_checkpoint_is_told_at_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let models = "{\n  hosts.a = { endpoint = \"http://a:1\", memory_mb = 9000 },\n  models.m = { source = \"m\" },\n}\n";
    std::fs::write(folder.path().join("models.ncl"), models).unwrap();
    std::fs::create_dir(folder.path().join("m")).unwrap();
    let header = r#"{"w":{"dtype":"BF16","shape":[4,4],"data_offsets":[0,32]}}"#;
    let whole = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 32]].concat();
    let index = br#"{"weight_map":{"w":"model.safetensors","v":"model-2.safetensors"}}"#;
    // In this order: what an earlier one broke the next one mends.
    let cases: [(&str, &[u8], &str); 6] = [
        ("model.safetensors", &whole, "m/config.json is not what it should be: EOF while parsing"),
        ("config.json", b"{}", ""),
        ("model.safetensors", &whole[..20], "m/model.safetensors ends within its header"),
        (
            "model.safetensors",
            &[&whole[..8], b"<!DOCTYPE html>", &[b' '; 60]].concat(),
            "m/model.safetensors has a header that is none of a safetensors file: expected value at line 1 column 1",
        ),
        ("model.safetensors", b"<!DOCTYPE html>", "m/model.safetensors does not begin as a safetensors file does"),
        ("model.safetensors.index.json", index, "m/model.safetensors.index.json names model-2.safetensors, which is not beside it"),
    ];
    std::fs::write(folder.path().join("m/config.json"), b"").unwrap();
    for (name, bytes, why) in cases {
        std::fs::write(folder.path().join("m").join(name), bytes).unwrap();
        if why.is_empty() {
            assert!(told(folder.path(), &["check"]).starts_with("ok"));
            continue;
        }
        let wrong = complaint(folder.path(), &["check"]);
        assert!(wrong.contains(why) && wrong.contains("models.ncl:3:") && wrong.contains("say vram_mb"), "{wrong}");
    }
}

#[test]
fn a_simulation_is_told_to_people_and_to_programs() {
    let asked = ["simulate", "--nodes", "20", "--seed", "3", "--seeds", "2", "--faults"];
    assert_eq!(told(&root(), &asked).lines().count(), 3);
    let runs: serde_json::Value = serde_json::from_str(&told(&root(), &[&asked[..], &["--json"]].concat())).unwrap();
    assert_eq!((runs[0]["seed"].as_u64(), runs[1]["seed"].as_u64()), (Some(3), Some(4)));
    assert!(runs[0]["rest_steps"].as_u64().unwrap() > 0, "{runs}");
}

/// A file that is not there is named.
#[test]
fn a_missing_file_is_named() {
    let wrong = complaint(Path::new("/"), &["check", "no-such-models.ncl"]);
    assert!(wrong.contains("cannot read no-such-models.ncl"), "{wrong}");
}

/// Each example of the document is a fleet that is proven.
#[test]
fn the_examples_of_the_document_are_proven() {
    let text = std::fs::read_to_string(root().join("docs/placement.md")).unwrap();
    let examples: Vec<&str> = text.split("```nickel\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(examples.len(), 4);
    let folder = tempfile::tempdir().unwrap();
    for example in examples {
        std::fs::write(folder.path().join("models.ncl"), example).unwrap();
        assert!(told(folder.path(), &["check"]).starts_with("ok"), "{example}");
    }
}
