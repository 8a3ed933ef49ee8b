//! A rendered placement behind the gateway: a reload loads and unloads what `plan` shows, and touches nothing else.

use std::collections::BTreeMap;

use cortex_core::config::Millis;
use cortex_gateway::{Gateway, Setup};
use cortex_placement::{Action, Declared, Desired, Moment, Observed, Placement, Policy, check, settle};
use neuron_api::mock::{MockConfig, MockModel, MockNeuron, MockServer};
use serde_json::{Value, json};

use crate::rig::{Rig, chat, config, streamed, until};

/// What models.ncl comes to when the one host `a` is `node` and `models` are these.
fn placement(node: &MockServer, models: Value) -> Placement {
    let Value::Object(mut models) = models else { panic!("models are an object") };
    for model in models.values_mut() {
        let fields = model.as_object_mut().unwrap();
        for (name, value) in [("residency", json!("resident")), ("priority", json!(100)), ("vram_mb", json!(1024))] {
            fields.entry(name).or_insert(value);
        }
    }
    let host = json!({ "endpoint": node.endpoint(), "memory_mb": 4096, "reserved_mb": 0 });
    let declared: Declared = serde_json::from_value(json!({ "hosts": { "a": host }, "models": models })).unwrap();
    check(&declared, &BTreeMap::new(), false).unwrap()
}

fn setup(placement: &Placement) -> Setup {
    let mut config = config([]);
    config.timeouts.reconcile_ms = Millis::new(10);
    config.eviction.residency_ms_min = Millis::new(1);
    Setup::placed(config, Placement::from_json(&placement.to_json()).unwrap()).unwrap()
}

async fn start(models: impl IntoIterator<Item = MockModel>, placed: impl Fn(&MockServer) -> Placement) -> Rig {
    let config = MockConfig { memory_total_bytes: 4 << 30, ..MockConfig::new(models) };
    let node = MockNeuron::new(config).serve().await.unwrap();
    Rig { gateway: Gateway::start(setup(&placed(&node))).await.unwrap(), nodes: vec![node] }
}

/// What `cortex placement plan` shows.
fn plan(rig: &Rig, placement: &Placement) -> Vec<String> {
    let now = Moment(u64::from(u32::MAX));
    let policy = Policy { unload_undeclared: true, ..Policy::default() };
    let steps = settle(&Desired::new(placement.clone(), policy), Observed::of(&rig.gateway.fleet(), now), now);
    steps.iter().map(Action::to_string).collect()
}

async fn loaded(rig: &Rig) -> Vec<String> {
    let report = rig.gateway.fleet();
    let models = report.nodes[0].models.iter().filter(|model| model.status == cortex_core::ModelStatus::Loaded);
    let mut names: Vec<String> = models.map(|model| model.id.to_string()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_reload_does_what_the_plan_shows_and_a_running_stream_does_not_notice() {
    let slow = MockModel { token_time: std::time::Duration::from_millis(8), ..MockModel::loaded("stays") };
    let slow = slow.saying((0..100).map(|i| format!("{i} ")));
    let rig = start([slow, MockModel::loaded("goes"), MockModel::available("comes")], |node| {
        placement(node, json!({ "stays": { "aliases": ["default"] }, "goes": {} }))
    })
    .await;
    assert_eq!(plan(&rig, &placement(&rig.nodes[0], json!({ "stays": {}, "goes": {} }))), [""; 0]);

    let client = rig.client();
    let stream = tokio::spawn(async move { client.chat(&streamed("default", "a long story")).await });
    until(async || rig.mock(0).counts().generations == 1).await;
    let next = placement(&rig.nodes[0], json!({ "stays": { "aliases": ["best"] }, "comes": { "fallbacks": ["stays"] } }));
    assert_eq!(plan(&rig, &next), ["unload goes from a:0", "load comes on a:0"]);
    rig.gateway.reload(setup(&next)).unwrap();
    until(async || loaded(&rig).await == ["comes", "stays"]).await;
    assert_eq!(plan(&rig, &next), [""; 0]);

    let reply = stream.await.unwrap();
    assert!(reply.status == 200 && reply.text().contains("99 ") && reply.text().ends_with("data: [DONE]\n\n"), "{}", reply.text());
    let counts = rig.mock(0).counts();
    assert_eq!((counts.loads, counts.unloads, counts.cancelled), (1, 1, 0));
    assert_eq!(rig.client().chat(&chat("best", "hi")).await.status, 200);
    let gone = rig.client().chat(&chat("default", "hi")).await;
    assert_eq!(gone.status, 404, "the alias is gone");
    assert!(gone.text().contains("`default` is not in the placement") && gone.text().contains("models.ncl"), "{}", gone.text());
}

#[tokio::test]
async fn a_model_on_demand_is_loaded_where_the_placement_allows_it_and_the_lower_priority_yields() {
    let rig = start([MockModel::available("low"), MockModel::available("high")], |node| {
        placement(node, json!({ "low": { "vram_mb": 3000 }, "high": { "residency": "on_demand", "priority": 200, "vram_mb": 3000 } }))
    })
    .await;
    until(async || loaded(&rig).await == ["low"]).await;
    assert_eq!(rig.client().chat(&chat("high", "hi")).await.status, 200);
    assert_eq!(loaded(&rig).await, ["high"]);
}

/// `big` takes more than the file says; what nodes measured is told beside it, and kept when the model has left.
#[tokio::test]
async fn the_fleet_report_tells_what_models_take() {
    let big = MockModel { memory_bytes: 1500 << 20, ..MockModel::loaded("big") };
    let rig = start([big, MockModel::available("other")], |node| placement(node, json!({ "big": {}, "other": { "vram_mb": 512 } }))).await;
    let measured = |id: &str| {
        let memory = rig.gateway.fleet().memory;
        let of_model = memory.iter().find(|memory| memory.model.as_str() == id);
        of_model.map(|memory| (memory.declared_mb, memory.computed_mb, memory.measured_mb))
    };
    until(async || measured("big") == Some((Some(1024), None, Some(1500)))).await;
    until(async || measured("other") == Some((Some(512), None, Some(1024)))).await;
    rig.gateway.reload(setup(&placement(&rig.nodes[0], json!({ "other": { "vram_mb": 512 } })))).unwrap();
    until(async || loaded(&rig).await == ["other"]).await;
    assert_eq!(measured("big"), Some((None, None, Some(1500))));
}
