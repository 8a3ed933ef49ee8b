//! Embeddings: the encodings, shortening, and what cannot be embedded.

use base64::Engine;
use cortex_core::Capability;
use neuron_api::mock::{MockConfig, MockModel, MockNeuron};
use serde_json::{Value, json};

use crate::support::{Answer, post, send, with};

async fn embed(fields: Value) -> Answer {
    let model = MockModel { capabilities: vec![Capability::Embeddings], ..MockModel::loaded("e") };
    let node = MockNeuron::new(MockConfig::new([model, MockModel::loaded("chat")]));
    let body = with(json!({"model": "e", "input": ["ab", [99]]}), fields);
    send(&node, post("/v1/embeddings", body)).await
}

fn vector(answer: &Answer, index: usize) -> Vec<f32> {
    serde_json::from_value(answer.json()["data"][index]["embedding"].clone()).unwrap()
}

#[tokio::test]
async fn each_input_has_a_vector_of_unit_length() {
    let answer = embed(json!({})).await;
    let body = answer.json();
    assert_eq!((&body["object"], &body["model"]), (&json!("list"), &json!("e")));
    assert_eq!(body["usage"], json!({"prompt_tokens": 3, "total_tokens": 3}));
    for index in 0..2 {
        assert_eq!(body["data"][index]["index"], index);
        let length: f32 = vector(&answer, index).iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-5);
    }
}

#[tokio::test]
async fn base64_holds_the_same_numbers() {
    let plain = vector(&embed(json!({})).await, 1);
    let encoded = embed(json!({"encoding_format": "base64"})).await.json();
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded["data"][1]["embedding"].as_str().unwrap()).unwrap();
    let decoded: Vec<f32> = bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
    assert_eq!(decoded, plain);
}

#[tokio::test]
async fn shorter_vectors_keep_direction_and_unit_length() {
    let long = vector(&embed(json!({})).await, 0);
    let short = vector(&embed(json!({"dimensions": 2})).await, 0);
    assert_eq!(short.len(), 2);
    assert!((short.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
    assert!((short[0] * long[1] - short[1] * long[0]).abs() < 1e-5);
    let answer = embed(json!({"dimensions": 5})).await;
    assert_eq!((answer.status.as_u16(), answer.error()["param"].as_str()), (400, Some("dimensions")));
}

#[tokio::test]
async fn a_chat_model_does_not_embed() {
    let answer = embed(json!({"model": "chat"})).await;
    assert_eq!((answer.status.as_u16(), answer.error()["param"].as_str()), (400, Some("model")));
}
