//! What the node says reaches the client byte for byte, and what the client says reaches the node, save for what must not.

use std::convert::Infallible;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use cortex_core::Placement;
use http::{HeaderMap, HeaderValue, Method};
use http_body::Frame;
use http_body_util::StreamBody;
use neuron_api::mock::MockModel;
use serde_json::json;

use crate::rig::{RawNode, Rig, chat, in_front_of, streamed};

/// An answer in these frames, with the usage as a trailer.
fn event_stream(frames: &[&'static str]) -> Response {
    let data = frames.iter().map(|frame| Ok::<_, Infallible>(Frame::data(Bytes::from_static(frame.as_bytes()))));
    let trailers = HeaderMap::from_iter([("x-neuron-usage".parse().unwrap(), HeaderValue::from_static("prompt=3;cached=1;completion=2"))]);
    let frames: Vec<_> = data.chain([Ok(Frame::trailers(trailers))]).collect();
    let mut response = Response::new(Body::new(StreamBody::new(futures::stream::iter(frames))));
    for (name, value) in
        [("content-type", "text/event-stream"), ("trailer", "x-neuron-usage"), ("connection", "x-secret"), ("x-secret", "1")]
    {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[tokio::test]
async fn a_stream_arrives_as_the_node_sent_it_however_it_was_cut_into_frames() {
    let cases: &[&'static [&'static str]] = &[
        &["data: {\"a\":1}\n\n", "data: {\"b\":2}\n\n", "data: [DONE]\n\n"],
        &["data: {\"a", "\":\"caf\u{e9}", "\"}\n", "\ndata: [DO", "NE]\n\n"],
        &[": ping\n\n", ": ping\n\n", "data: 1\r\n\r\n", ": ping\n\n", "data: [DONE]\r\n\r\n"],
        &["data: {}\n\ndata: {}\n\ndata: [DONE]\n\n"],
        &["event: strange\ndata: no JSON\n\n"],
    ];
    for frames in cases {
        let node = RawNode::start(vec![MockModel::loaded("m")], |path, _| path.starts_with("/v1/chat").then(|| event_stream(frames))).await;
        let rig = in_front_of(&node, |_| {}).await;
        let reply = rig.client().chat(&streamed("m", "hi")).await;
        assert_eq!(reply.text(), frames.concat());
        assert_eq!(reply.headers["content-type"], "text/event-stream");
        for hidden in ["trailer", "x-neuron-usage", "x-secret"] {
            assert!(!reply.headers.contains_key(hidden), "{hidden}");
        }
        assert_eq!(rig.metric("cortex_tokens_total{direction=\"completion\",model=\"m\",node=\"a\"}").await, Some(2.0));
    }
}

#[tokio::test]
async fn the_real_router_streams_the_same_through_the_gateway() {
    let rig = Rig::start([vec![MockModel::loaded("m").saying(["Hel", "lo ", "wörld"])]]).await;
    let text = rig.client().chat(&streamed("m", "hi")).await.text();
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    let said: String = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line.strip_prefix("data: ")?).ok())
        .filter_map(|chunk| Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned()))
        .collect();
    assert_eq!(said, "Hello wörld");
}

#[tokio::test]
async fn the_body_reaches_the_node_untouched_and_credentials_do_not() {
    let node = RawNode::start(vec![MockModel::loaded("m")], |_, _| None).await;
    let rig = in_front_of(&node, |_| {}).await;
    let body = "{ \"messages\":[ {\"role\":\"user\", \"content\":\"\\u00e9\"} ],\n\t\"model\" : \"m\", \"unknown\": 1e5 }";
    let headers: HeaderMap = [
        ("authorization", "Bearer secret"),
        ("x-api-key", "secret"),
        ("cookie", "secret"),
        ("x-neuron-usage", "prompt=1;cached=1;completion=1"),
        ("x-request-id", "from-the-client"),
        ("user-agent", "test"),
    ]
    .into_iter()
    .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)))
    .collect();
    let reply = rig.client().request(Method::POST, "/v1/chat/completions", headers, body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.headers["x-request-id"], "from-the-client");
    assert!(!reply.headers.contains_key("x-neuron-usage"));

    let seen = node.seen.lock().unwrap();
    let (_, headers, forwarded) = seen.iter().find(|(path, ..)| path == "/v1/chat/completions").unwrap();
    assert_eq!(forwarded, body);
    for (name, value) in
        [("te", "trailers"), ("x-request-id", "from-the-client"), ("user-agent", "test"), ("content-type", "application/json")]
    {
        assert_eq!(headers[name], value);
    }
    for (name, value) in headers {
        assert!(!value.to_str().unwrap().contains("secret"), "{name} was forwarded");
    }
    assert!(!headers.contains_key("x-neuron-usage"));
}

#[tokio::test]
async fn an_alias_is_replaced_by_its_model_and_nothing_else_changes() {
    let node = RawNode::start(vec![MockModel::loaded("Qwen/Qwen3-8B")], |_, _| None).await;
    let aliases = [("fast".to_owned(), "Qwen/Qwen3-8B".into())].into();
    let rig = in_front_of(&node, |config| config.placement = Placement::new([], aliases)).await;
    let body = chat("fast", "say \"model\":\"fast\"");
    assert_eq!(rig.client().chat(&body).await.status, 200);
    let seen = node.seen.lock().unwrap();
    let (.., forwarded) = seen.iter().find(|(path, ..)| path == "/v1/chat/completions").unwrap();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(forwarded).unwrap(), {
        let mut expected = body.clone();
        expected["model"] = "Qwen/Qwen3-8B".into();
        expected
    });
}

#[tokio::test]
async fn every_inference_path_is_passed_on() {
    let mut embedder = MockModel::loaded("e");
    embedder.capabilities = vec![cortex_core::Capability::Embeddings];
    let mut reranker = MockModel::loaded("r");
    reranker.capabilities = vec![cortex_core::Capability::Rerank];
    let rig = Rig::start([vec![MockModel::loaded("m"), embedder, reranker]]).await;
    let cases = [
        ("/v1/chat/completions", chat("m", "hi"), "chat.completion"),
        ("/v1/completions", json!({ "model": "m", "prompt": "hi" }), "text_completion"),
        ("/v1/embeddings", json!({ "model": "e", "input": "hi" }), "list"),
        ("/v1/rerank", json!({ "model": "r", "query": "hi", "documents": ["hi"] }), "list"),
    ];
    for (path, body, object) in cases {
        let reply = rig.client().post(path, &body).await;
        assert_eq!((reply.status.as_u16(), reply.json()["object"].as_str()), (200, Some(object)), "{path}: {}", reply.text());
        assert!(!reply.headers["x-request-id"].is_empty());
    }
}
