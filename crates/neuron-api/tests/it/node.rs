//! The node about itself and its models.

use cortex_core::Capability;
use neuron_api::mock::{MockConfig, MockModel, MockNeuron};
use serde_json::json;

use crate::support::{get, post, send};

fn node() -> MockNeuron {
    let vision = MockModel { capabilities: vec![Capability::Chat, Capability::Vision], ..MockModel::loaded("Org/Name-1B") };
    MockNeuron::new(MockConfig::new([vision, MockModel::available("cold")]).named("beast"))
}

#[tokio::test]
async fn the_node_tells_what_it_is() {
    let node = node();
    let discovery = send(&node, get("/discovery")).await.json();
    assert_eq!((&discovery["hostname"], &discovery["harnesses"]), (&json!("beast"), &json!(["mock"])));
    let health = send(&node, get("/health")).await.json();
    assert_eq!((&health["ready"], &health["devices"][0]["memory_used_bytes"]), (&json!(true), &json!(1 << 30)));
    assert_eq!(health["models"][0]["id"], "Org/Name-1B");
    let version = send(&node, get("/version")).await.json();
    assert_eq!(version, json!({"name": "neuron", "version": env!("CARGO_PKG_VERSION")}));
}

#[tokio::test]
async fn all_models_are_listed_with_their_state() {
    let node = node();
    let reports = send(&node, get("/models")).await.json();
    let states: Vec<_> = reports["models"].as_array().unwrap().iter().map(|model| (&model["id"], &model["status"]["state"])).collect();
    assert_eq!(states, [(&json!("Org/Name-1B"), &json!("loaded")), (&json!("cold"), &json!("available"))]);

    let mut list = send(&node, get("/v1/models")).await.json();
    list["data"].as_array_mut().unwrap().iter_mut().for_each(|model| model["created"] = json!(0));
    let expected = json!({"object": "list", "data": [
        {"id": "Org/Name-1B", "object": "model", "created": 0, "owned_by": "neuron", "state": "loaded", "nodes": ["beast"],
         "context_length": 4096, "capabilities": ["chat", "vision"]},
        {"id": "cold", "object": "model", "created": 0, "owned_by": "neuron", "state": "available", "nodes": ["beast"],
         "context_length": 4096, "capabilities": ["chat"]},
    ]});
    assert_eq!(list, expected);
}

#[tokio::test]
async fn ids_with_slashes_are_found_written_either_way() {
    let node = node();
    for path in ["/v1/models/Org/Name-1B", "/v1/models/Org%2FName-1B"] {
        assert_eq!(send(&node, get(path)).await.json()["id"], "Org/Name-1B");
    }
    for path in ["/models/Org/Name-1B/endpoint", "/models/Org%2FName-1B/endpoint"] {
        let mut request = get(path);
        request.headers_mut().insert("host", "beast.internal:13131".parse().unwrap());
        let answer = send(&node, request).await.json();
        assert_eq!(answer, json!({"model_id": "Org/Name-1B", "endpoint": "http://beast.internal:13131/v1"}));
    }
}

#[tokio::test]
async fn only_a_loaded_model_has_an_endpoint() {
    for (path, status, code) in [("/models/cold/endpoint", 503, "model_not_loaded"), ("/models/none/endpoint", 404, "model_not_found")] {
        let answer = send(&node(), get(path)).await;
        assert_eq!((answer.status.as_u16(), answer.error()["code"].as_str()), (status, Some(code)));
    }
}

#[tokio::test]
async fn tokenize_counts_what_a_generation_counts() {
    let node = node();
    let chat = json!({"model": "Org/Name-1B", "messages": [{"role": "user", "content": "Grüße"}]});
    let tokenized = send(&node, post("/tokenize", &chat)).await.json();
    let answered = send(&node, post("/v1/chat/completions", &chat)).await.json();
    assert_eq!(tokenized["count"], answered["usage"]["prompt_tokens"]);
    assert_eq!(tokenized["max_model_len"], 4096);

    let text = send(&node, post("/tokenize", json!({"model": "Org/Name-1B", "prompt": "ab"}))).await.json();
    assert_eq!(text["tokens"], json!([97, 98]));
    let back = send(&node, post("/detokenize", json!({"model": "Org/Name-1B", "tokens": [97, 98]}))).await.json();
    assert_eq!(back, json!({"prompt": "ab"}));
}
