//! Loads and unloads through the API, and the mock's promises about them.

use std::time::Duration;

use axum::http::StatusCode;
use cortex_core::{Harness, ModelSpec, ModelStatus, UnloadRequest};
use neuron_api::mock::{Faults, MockConfig, MockModel, MockNeuron};
use serde_json::{Value, json};

use crate::support::{Answer, post, send};

fn slow(id: &str) -> MockModel {
    MockModel { load_time: Duration::from_secs(20), unload_time: Duration::from_secs(5), ..MockModel::available(id) }
}

async fn load(node: &MockNeuron, body: Value) -> Answer {
    send(node, post("/models/load", body)).await
}

async fn unload(node: &MockNeuron, body: Value) -> Answer {
    send(node, post("/models/unload", body)).await
}

#[tokio::test(start_paused = true)]
async fn a_load_answers_when_loaded_and_an_unload_when_the_memory_is_back() {
    let node = MockNeuron::new(MockConfig::new([slow("m")]));
    let report = load(&node, json!({"model_id": "m", "generation": 3})).await.json();
    assert_eq!(
        (&report["status"]["state"], &report["generation"], &report["memory_used_bytes"]),
        (&json!("loaded"), &json!(3), &json!(1 << 30))
    );
    assert_eq!(load(&node, json!({"model_id": "m"})).await.status, 200);

    let answer = unload(&node, json!({"model_id": "m", "generation": 4})).await.json();
    assert_eq!(answer, json!({"model_id": "m", "unloaded": true}));
    assert_eq!(node.health().devices[0].memory_used_bytes, 0);
    assert_eq!(unload(&node, json!({"model_id": "m"})).await.status, 200);
    assert_eq!((node.counts().loads, node.counts().unloads), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_hundred_loads_are_one() {
    let node = MockNeuron::new(MockConfig::new([slow("m")]));
    let answers = futures::future::join_all((0..100).map(|_| load(&node, json!({"model_id": "m"})))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(node.counts().loads_started, 1);
}

#[tokio::test(start_paused = true)]
async fn a_load_goes_on_when_its_caller_leaves() {
    let node = MockNeuron::new(MockConfig::new([slow("m")]));
    let left = tokio::time::timeout(Duration::from_secs(1), load(&node, json!({"model_id": "m"}))).await;
    assert!(left.is_err());
    node.wait_for(|counts| counts.loads == 1).await;
    assert_eq!(node.models()[0].status, ModelStatus::Loaded);
}

#[tokio::test(start_paused = true)]
async fn an_unload_waits_for_the_last_answer_and_a_load_for_the_unload() {
    let mut model = slow("m").saying(["a", "b"]);
    (model.loaded, model.token_time) = (true, Duration::from_secs(30));
    let node = MockNeuron::new(MockConfig::new([model]));
    let generation = send(&node, post("/v1/completions", json!({"model": "m", "prompt": "x"})));
    let gone = async {
        node.wait_for(|counts| counts.active == 1).await;
        let gone = unload(&node, json!({"model_id": "m"})).await;
        (gone.status, node.counts().finished)
    };
    let back = async {
        node.wait_for(|counts| counts.active == 1).await;
        tokio::task::yield_now().await;
        load(&node, json!({"model_id": "m"})).await.status
    };
    let (answer, gone, back) = tokio::join!(generation, gone, back);
    assert_eq!(answer.status, 200);
    assert_eq!((gone, back), ((StatusCode::OK, 1), StatusCode::OK));
}

#[tokio::test]
async fn stale_generations_are_refused() {
    let node = MockNeuron::new(MockConfig::new([MockModel::available("a"), MockModel::available("b")]));
    assert_eq!(load(&node, json!({"model_id": "a", "generation": 7})).await.status, 200);
    for answer in [
        load(&node, json!({"model_id": "b", "generation": 6})).await,
        unload(&node, json!({"model_id": "a", "generation": 6})).await,
        load(&node, json!({"model_id": "b", "generation": 7})).await,
        unload(&node, json!({"model_id": "a", "generation": 7})).await,
    ] {
        assert_eq!((answer.status.as_u16(), answer.error()["code"].as_str()), (409, Some("stale_generation")));
        assert!(answer.error()["message"].as_str().unwrap().contains('7'));
    }
    assert_eq!(load(&node, json!({"model_id": "a", "generation": 7})).await.status, 200, "the same once more");
    assert_eq!(load(&node, json!({"model_id": "b", "generation": 8})).await.status, 200);
}

#[tokio::test]
async fn loads_fail_as_scripted_and_then_recover() {
    let node = MockNeuron::new(MockConfig {
        memory_total_bytes: 3 << 29,
        ..MockConfig::new([MockModel::available("m"), MockModel::loaded("big")])
    });
    let full = load(&node, json!({"model_id": "m"})).await;
    assert_eq!((full.status.as_u16(), full.error()["code"].as_str()), (500, Some("cannot_load")));
    assert_eq!(unload(&node, json!({"model_id": "big"})).await.status, 200);

    node.set_faults("m", Faults { fail_loads: 2, ..Faults::default() });
    let statuses = [(); 3].map(|()| load(&node, json!({"model_id": "m"})));
    let mut seen = Vec::new();
    for status in statuses {
        seen.push(status.await.status.as_u16());
    }
    assert_eq!(seen, [500, 500, 200]);
    assert_eq!((node.counts().loads, node.counts().loads_failed), (1, 3));

    node.set_faults("big", Faults { refuse_load: Some("no".into()), ..Faults::default() });
    let refused = load(&node, json!({"model_id": "big"})).await;
    assert_eq!(refused.error()["message"], "cannot load `big`: no");
    assert_eq!(load(&node, json!({"model_id": "none"})).await.status, 404);
}

#[tokio::test]
async fn a_model_that_is_not_loaded_does_not_answer() {
    let node = MockNeuron::new(MockConfig::new([MockModel::available("m")]));
    let answer = send(&node, post("/v1/completions", json!({"model": "m", "prompt": "x"}))).await;
    assert_eq!(
        (answer.status.as_u16(), answer.error()["code"].as_str(), answer.header("retry-after")),
        (503, Some("model_not_loaded"), Some("1"))
    );
    node.load(ModelSpec::new("m")).await.unwrap();
    assert_eq!(send(&node, post("/v1/completions", json!({"model": "m", "prompt": "x"}))).await.status, 200);
    node.unload(UnloadRequest { model_id: "m".into(), generation: None }).await.unwrap();
}
