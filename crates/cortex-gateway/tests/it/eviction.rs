//! Who is in memory: loads on demand, room made for them, and what must never be made to leave.

use std::collections::BTreeMap;

use cortex_core::config::{GatewayConfig, Millis, ModelTerms, Residency};
use cortex_core::{ModelSpec, NodeState, PlacedModel, Placement};
use cortex_gateway::Gateway;
use futures::future::join_all;
use http_body_util::BodyExt;
use neuron_api::mock::{Faults, MockConfig, MockModel, MockNeuron, MockServer};

use crate::rig::{Rig, TestClient, chat, config, streamed, until};

const GIB: u64 = 1 << 30;

/// A node of so many GiB, each of whose models takes one.
async fn node(memory_gib: u64, models: impl IntoIterator<Item = MockModel>) -> MockServer {
    let config = MockConfig { memory_total_bytes: memory_gib * GIB, active_max: 10_000, ..MockConfig::new(models) };
    MockNeuron::new(config).serve().await.unwrap()
}

/// A gateway in front of `nodes` that knows these models to take a GiB each.
async fn gateway(nodes: Vec<MockServer>, models: &[(&str, ModelTerms)], change: impl FnOnce(&mut GatewayConfig)) -> Rig {
    let mut config = config(nodes.iter().map(|node| node.addr));
    let placed = models.iter().map(|(id, _)| PlacedModel { spec: ModelSpec::new(*id), nodes: Vec::new() });
    config.placement = Placement::new(placed, BTreeMap::new());
    config.terms = models.iter().map(|(id, terms)| ((*id).into(), ModelTerms { vram_mb: Some(1024), ..terms.clone() })).collect();
    config.eviction.residency_ms_min = Millis::new(1);
    config.eviction.defrag_after_cycles = 0;
    config.timeouts.reconcile_ms = Millis::new(10);
    change(&mut config);
    Rig { gateway: Gateway::start(config).await.unwrap(), nodes }
}

fn on_demand() -> ModelTerms {
    ModelTerms::default()
}

fn resident() -> ModelTerms {
    ModelTerms { residency: Residency::Resident, ..ModelTerms::default() }
}

async fn state(rig: &Rig, model: &str) -> String {
    rig.client().get(&format!("/v1/models/{model}")).await.json()["state"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_model_that_was_not_asked_for_the_longest_makes_room() {
    for (used, leaves) in [("m", "n"), ("n", "m")] {
        let node = node(2, [MockModel::loaded("m"), MockModel::loaded("n"), MockModel::available("o")]).await;
        let rig = gateway(vec![node], &[("m", on_demand()), ("n", on_demand()), ("o", on_demand())], |_| {}).await;
        // Both count as used when they were first seen; only what comes later tells them apart, in milliseconds.
        until(async || rig.metric("cortex_node_cycles{node=\"a\"}").await.is_some()).await;
        let seen = std::time::Instant::now();
        while seen.elapsed() < std::time::Duration::from_millis(5) {
            assert_eq!(rig.client().chat(&chat(used, "hi")).await.status, 200);
        }
        assert_eq!(rig.client().chat(&chat("o", "hi")).await.status, 200);
        assert_eq!((state(&rig, used).await, state(&rig, leaves).await), ("loaded".into(), "available".into()));
        let counts = rig.mock(0).counts();
        assert_eq!((counts.loads_started, counts.loads_failed, counts.unloads), (1, 0, 1));
        let unloads = format!("cortex_model_unloads_total{{model=\"{leaves}\",node=\"a\",outcome=\"ok\"}}");
        assert_eq!(rig.metric(&unloads).await, Some(1.0));
    }
}

#[tokio::test]
async fn a_model_in_use_is_drained_and_its_stream_ends_well() {
    let node = node(1, [MockModel::loaded("m").saying(["to ", "the ", "end"]), MockModel::available("n")]).await;
    node.mock.script("m", |model| model.prefill_time = std::time::Duration::from_millis(1_500));
    let rig = gateway(vec![node], &[("m", on_demand()), ("n", on_demand())], |config| config.timeouts.keep_alive_ms = Millis::new(1)).await;
    let stream = rig.client().open_chat(&streamed("m", "hi")).await;
    rig.mock(0).wait_for(|counts| counts.active == 1).await;
    let client = rig.client();
    let waiting = tokio::spawn(async move { client.chat(&chat("n", "hi")).await });
    until(async || state(&rig, "m").await == "available").await; // it gets nothing new
    assert_eq!((rig.mock(0).counts().unloads, rig.mock(0).counts().loads_started), (0, 0));
    let text = String::from_utf8(stream.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    assert!(text.contains("end") && text.ends_with("data: [DONE]\n\n"), "{text}");
    assert_eq!(waiting.await.unwrap().status, 200);
    let counts = rig.mock(0).counts();
    assert_eq!((counts.unloads, counts.loads, counts.cancelled, counts.died), (1, 1, 0, 0));
}

#[tokio::test]
async fn a_pinned_model_stays_and_the_one_that_wanted_its_place_is_told_at_once() {
    let node = node(1, [MockModel::loaded("m"), MockModel::available("n")]).await;
    let pinned = ModelTerms { residency: Residency::Pinned, ..ModelTerms::default() };
    let rig = gateway(vec![node], &[("m", pinned), ("n", ModelTerms { priority: 1_000, ..on_demand() })], |_| {}).await;
    let reply = rig.client().chat(&chat("n", "hi")).await;
    assert_eq!((reply.status.as_u16(), reply.code().as_str()), (503, "cannot_load"), "{}", reply.text());
    assert!(reply.text().contains("no node that may hold it has the memory"), "{}", reply.text());
    assert!(reply.headers.contains_key("retry-after"));
    assert_eq!((rig.mock(0).counts().unloads, rig.mock(0).counts().loads_started), (0, 0));
    assert_eq!(rig.client().chat(&chat("m", "hi")).await.status, 200);
}

#[tokio::test]
async fn a_resident_is_loaded_unasked_and_comes_back_when_what_displaced_it_fails() {
    let node = node(1, [MockModel::available("m"), MockModel::available("n")]).await;
    let rig = gateway(vec![node], &[("m", resident()), ("n", ModelTerms { priority: 200, ..on_demand() })], |_| {}).await;
    rig.mock(0).wait_for(|counts| counts.loads == 1).await;
    until(async || state(&rig, "m").await == "loaded").await;
    rig.mock(0).set_faults("n", Faults { fail_loads: 1, ..Faults::default() });
    let reply = rig.client().chat(&chat("n", "hi")).await;
    assert_eq!((reply.status.as_u16(), reply.code().as_str()), (503, "cannot_load"), "{}", reply.text());
    rig.mock(0).wait_for(|counts| counts.loads == 2).await;
    until(async || state(&rig, "m").await == "loaded").await;
    let counts = rig.mock(0).counts();
    assert_eq!((counts.unloads, counts.loads_failed), (1, 1));
}

#[tokio::test]
async fn a_model_that_nobody_asks_for_leaves_and_is_back_when_asked_for() {
    let node = node(2, [MockModel::loaded("m")]).await;
    let rig = gateway(vec![node], &[("m", ModelTerms { idle_unload_s: Some(0), ..on_demand() })], |_| {}).await;
    rig.mock(0).wait_for(|counts| counts.unloads == 1).await;
    assert_eq!(rig.client().chat(&chat("m", "hi")).await.status, 200);
    assert_eq!(rig.mock(0).counts().loads, 1);
}

#[tokio::test]
async fn a_thousand_requests_for_a_cold_model_are_one_load_and_none_is_lost() {
    const REQUESTS: usize = 1_000;
    const AT_ONCE: usize = 200; // open sockets are the scarce thing in a test; each has two ends, on both legs
    let node = node(2, [MockModel { load_time: std::time::Duration::from_millis(500), ..MockModel::available("m") }]).await;
    let rig = gateway(vec![node], &[("m", on_demand())], |_| {}).await;
    let workers = (0..AT_ONCE).map(|_| {
        let client = rig.client();
        tokio::spawn(async move {
            let mut served = 0;
            for _ in 0..REQUESTS / AT_ONCE {
                let reply = client.chat(&chat("m", "hi")).await;
                assert_eq!(reply.status, 200, "{}", reply.text());
                served += 1;
            }
            served
        })
    });
    let served: usize = join_all(workers).await.into_iter().map(Result::unwrap).sum();
    assert_eq!(served, REQUESTS);
    assert_eq!(rig.mock(0).counts().loads_started, 1);
}

#[tokio::test]
async fn two_gateways_that_want_the_same_model_load_it_once_and_agree_on_whom_to_displace() {
    let time = std::time::Duration::from_millis(50);
    let models = || ["m", "n", "o"].map(|id| MockModel { load_time: time, ..MockModel::available(id) });
    let terms = [("m", on_demand()), ("n", on_demand()), ("o", on_demand())];
    let one = gateway(vec![node(1, models()).await, node(1, models()).await], &terms, |_| {}).await;
    let mut second = config(one.nodes.iter().map(|node| node.addr));
    second.placement =
        Placement::new(terms.iter().map(|(id, _)| PlacedModel { spec: ModelSpec::new(*id), nodes: Vec::new() }), BTreeMap::new());
    second.terms = terms.iter().map(|(id, terms)| ((*id).into(), ModelTerms { vram_mb: Some(1024), ..terms.clone() })).collect();
    second.timeouts.reconcile_ms = Millis::new(10);
    let other = Gateway::start(second).await.unwrap();
    let clients = [one.client(), TestClient::new(other.addr)];
    let mut requests = Vec::new();
    for i in 0..40 {
        let client = clients[i % 2].clone();
        requests.push(tokio::spawn(async move { client.chat(&chat("m", "hi")).await }));
    }
    for request in requests {
        let reply = request.await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    let loads = || one.nodes.iter().map(|node| node.mock.counts().loads_started).sum::<usize>();
    assert_eq!(loads(), 1, "one load for both");
    for client in &clients {
        assert_eq!(client.chat(&chat("n", "hi")).await.status, 200);
        assert_eq!(client.chat(&chat("m", "hi")).await.status, 200);
    }
    assert_eq!(loads(), 2, "each has its node, and stays");
    assert_eq!(one.nodes.iter().map(|node| node.mock.counts().unloads).sum::<usize>(), 0);
}

#[tokio::test]
async fn a_worn_node_is_drained_and_its_memory_rebuilt() {
    let node = node(1, [MockModel::available("m"), MockModel::available("n")]).await;
    let rig = gateway(vec![node], &[("m", on_demand()), ("n", on_demand())], |config| config.eviction.defrag_after_cycles = 3).await;
    assert_eq!(rig.client().chat(&chat("m", "hi")).await.status, 200);
    assert_eq!(rig.client().chat(&chat("n", "hi")).await.status, 200);
    // Load, unload, load: the third cycle; then everything leaves.
    rig.mock(0).wait_for(|counts| counts.unloads == 2).await;
    until(async || rig.state(0) == NodeState::Ready && rig.metric("cortex_node_cycles{node=\"a\"}").await == Some(0.0)).await;
    assert_eq!(rig.client().chat(&chat("n", "hi")).await.status, 200);
    assert_eq!(rig.mock(0).counts().loads, 3);
}

#[tokio::test]
async fn an_operator_drains_a_node_and_takes_it_back() {
    let nodes = vec![node(1, [MockModel::loaded("m")]).await, node(1, [MockModel::loaded("m")]).await];
    let rig = gateway(nodes, &[("m", on_demand())], |_| {}).await;
    let (client, nothing) = (rig.client(), serde_json::json!({}));
    assert_eq!(client.post("/admin/nodes/a/drain", &nothing).await.status, 200);
    assert_eq!(rig.state(0), NodeState::Draining);
    for talk in 0..10 {
        assert_eq!(client.chat(&chat("m", &format!("talk {talk}"))).await.status, 200);
    }
    assert_eq!((rig.mock(0).counts().generations, rig.mock(1).counts().generations), (0, 10));
    assert_eq!(client.post("/admin/nodes/a/undrain", &nothing).await.status, 200);
    assert_eq!(rig.state(0), NodeState::Ready);
    let unknown = client.post("/admin/nodes/z/drain", &nothing).await;
    assert_eq!((unknown.status.as_u16(), unknown.code().as_str()), (404, "node_not_found"));
    assert_eq!(client.get("/admin/plan").await.json()["actions"], serde_json::json!([]));
}
