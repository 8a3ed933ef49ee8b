//! Reranking: the order, what is told of it, and what cannot be ranked.

use cortex_core::Capability;
use neuron_api::mock::{MockConfig, MockModel, MockNeuron};
use serde_json::{Value, json};

use crate::support::{Answer, post, send, with};

async fn rank(fields: Value) -> Answer {
    let model = MockModel { capabilities: vec![Capability::Rerank], ..MockModel::loaded("r") };
    let node = MockNeuron::new(MockConfig::new([model, MockModel::loaded("chat")]));
    let documents = json!(["a river", "no", { "text": "the red heron" }, "heron red"]);
    send(&node, post("/v1/rerank", with(json!({"model": "r", "query": "red heron", "documents": documents}), fields))).await
}

#[tokio::test]
async fn documents_come_best_first_and_equals_in_their_order() {
    let answer = rank(json!({})).await.json();
    let expected = json!({
        "id": "rerank-r-1", "object": "list", "model": "r",
        "results": [
            { "index": 3, "relevance_score": 1.0 },
            { "index": 2, "relevance_score": 0.6666667 },
            { "index": 0, "relevance_score": 0.0 },
            { "index": 1, "relevance_score": 0.0 },
        ],
        "usage": { "prompt_tokens": 67, "total_tokens": 67 },
    });
    assert_eq!(answer, expected);
}

#[tokio::test]
async fn the_best_few_may_be_enough_and_may_come_with_their_texts() {
    let answer = rank(json!({"top_n": 2, "return_documents": true})).await.json();
    let texts: Vec<&Value> = answer["results"].as_array().unwrap().iter().map(|result| &result["document"]["text"]).collect();
    assert_eq!(texts, ["heron red", "the red heron"]);
}

#[tokio::test]
async fn a_bad_field_is_named() {
    let cases = [
        (json!({"query": null}), "query", "missing_required_parameter"),
        (json!({"query": 7}), "query", "invalid_type"),
        (json!({"documents": null}), "documents", "missing_required_parameter"),
        (json!({"documents": []}), "documents", "invalid_value"),
        (json!({"documents": ["a", 7]}), "documents", "invalid_type"),
        (json!({"documents": [{"title": "a"}]}), "documents", "invalid_type"),
        (json!({"top_n": 0}), "top_n", "invalid_value"),
        (json!({"return_documents": "yes"}), "return_documents", "invalid_type"),
    ];
    for (fields, param, code) in cases {
        let answer = rank(fields.clone()).await;
        let error = answer.error();
        assert_eq!((answer.status.as_u16(), error["param"].as_str(), error["code"].as_str()), (400, Some(param), Some(code)), "{fields}");
    }
    let chat = rank(json!({"model": "chat"})).await;
    assert_eq!((chat.status.as_u16(), chat.error()["param"].as_str()), (400, Some("model")));
    assert!(chat.error()["message"].as_str().unwrap().contains("rerank"), "{}", chat.error());
}
