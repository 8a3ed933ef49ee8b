//! Cold loads: one however many wait, owned by nobody who waits, and explained when they fail.

use cortex_core::PlacedModel;
use cortex_core::Placement;
use cortex_core::config::Millis;
use cortex_core::model::ModelSpec;
use futures::future::join_all;
use http_body_util::BodyExt;
use neuron_api::mock::{Faults, MockModel};
use neuron_api::{Client, ClientTimeouts};
use serde_json::json;

use crate::rig::{RawNode, Rig, chat, in_front_of, streamed, until};

#[tokio::test]
async fn a_hundred_requests_for_a_cold_model_are_one_load() {
    let node = RawNode::start(vec![MockModel::available("m")], |_, _| None).await;
    let rig = in_front_of(&node, |_| {}).await;
    let client = rig.client();
    let requests = (0..100).map(|i| {
        let client = client.clone();
        tokio::spawn(async move { client.chat(&chat("m", &format!("hello {i}"))).await })
    });
    let requests: Vec<_> = requests.collect();
    until(async || rig.metric("cortex_load_waiters{model=\"m\"}").await == Some(100.0)).await;
    let loading = rig.client().get("/v1/models/m").await.json();
    assert_eq!(loading["state"], "loading");
    node.gate.notify_one();
    for (i, reply) in join_all(requests).await.into_iter().enumerate() {
        let reply = reply.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.json()["choices"][0]["message"]["content"], format!("hello {i}"));
    }
    assert_eq!(node.mock.counts().loads_started, 1);
    assert_eq!(rig.metric("cortex_model_loads_total{model=\"m\",node=\"a\",outcome=\"ok\"}").await, Some(1.0));
    assert_eq!(rig.client().get("/v1/models/m").await.json()["state"], "loaded");
}

#[tokio::test]
async fn a_load_survives_the_client_who_wanted_it_first() {
    let node = RawNode::start(vec![MockModel::available("m")], |_, _| None).await;
    let rig = in_front_of(&node, |_| {}).await;
    let client = rig.client();
    let first = tokio::spawn(async move { client.chat(&chat("m", "hi")).await });
    until(async || rig.metric("cortex_load_waiters{model=\"m\"}").await == Some(1.0)).await;
    first.abort();
    until(async || rig.metric("cortex_load_waiters{model=\"m\"}").await == Some(0.0)).await;
    node.gate.notify_one();
    assert_eq!(rig.client().chat(&chat("m", "hi")).await.status, 200);
    assert_eq!(node.mock.counts().loads_started, 1);
}

#[tokio::test]
async fn a_stream_that_waits_for_a_load_gets_comments_and_then_its_answer() {
    let node = RawNode::start(vec![MockModel::available("m").saying(["hello"])], |_, _| None).await;
    let rig = in_front_of(&node, |config| config.timeouts.keep_alive_ms = Millis::new(1)).await;
    let mut stream = rig.client().open_chat(&streamed("m", "hi")).await;
    assert_eq!((stream.status().as_u16(), &stream.headers()["content-type"]), (200, &"text/event-stream".parse().unwrap()));
    for _ in 0..3 {
        assert_eq!(stream.frame().await.unwrap().unwrap().into_data().unwrap(), ": ping\n\n");
    }
    node.gate.notify_one();
    let rest = stream.into_body().collect().await.unwrap().to_bytes();
    let rest = String::from_utf8(rest.to_vec()).unwrap();
    assert!(rest.contains("hello") && rest.ends_with("data: [DONE]\n\n"), "{rest}");
}

#[tokio::test]
async fn a_stream_whose_load_fails_after_its_head_went_out_ends_in_an_error_event() {
    let node = RawNode::start(vec![MockModel::available("m")], |_, _| None).await;
    node.mock.set_faults("m", Faults { refuse_load: Some("the disk is on fire".into()), ..Faults::default() });
    let rig = in_front_of(&node, |config| config.timeouts.keep_alive_ms = Millis::new(1)).await;
    let mut stream = rig.client().open_chat(&streamed("m", "hi")).await;
    assert_eq!(stream.frame().await.unwrap().unwrap().into_data().unwrap(), ": ping\n\n");
    node.gate.notify_one();
    let rest = String::from_utf8(stream.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    let event = rest.trim_start_matches(": ping\n\n");
    assert!(event.starts_with("data: {\"error\":") && event.contains("the disk is on fire"), "{rest}");
    assert!(!rest.contains("[DONE]"), "{rest}");
}

#[tokio::test]
async fn the_reason_of_a_failed_load_reaches_every_waiter_and_the_next_client_without_another_load() {
    let node = RawNode::start(vec![MockModel::available("m")], |_, _| None).await;
    node.mock.set_faults("m", Faults { refuse_load: Some("the disk is on fire".into()), ..Faults::default() });
    let rig = in_front_of(&node, |config| config.timeouts.load_failure_ms = Millis::new(3_600_000)).await;
    let client = rig.client();
    let requests: Vec<_> = (0..20)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.chat(&chat("m", "hi")).await })
        })
        .collect();
    until(async || rig.metric("cortex_load_waiters{model=\"m\"}").await == Some(20.0)).await;
    node.gate.notify_one();
    let mut replies: Vec<_> = join_all(requests).await.into_iter().map(Result::unwrap).collect();
    replies.push(rig.client().chat(&chat("m", "hi")).await);
    for reply in replies {
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (503, "cannot_load"));
        assert!(reply.text().contains("the disk is on fire"), "{}", reply.text());
        assert_eq!(reply.headers["retry-after"], "3600");
    }
    assert_eq!(node.mock.counts().loads_started, 1);
    assert_eq!(rig.metric("cortex_model_loads_total{model=\"m\",node=\"a\",outcome=\"failed\"}").await, Some(1.0));
}

#[tokio::test]
async fn a_load_that_fails_on_one_node_is_tried_on_the_next() {
    let rig = Rig::start([vec![MockModel::available("m")], vec![MockModel::available("m")]]).await;
    rig.mock(0).set_faults("m", Faults { refuse_load: Some("no".into()), ..Faults::default() });
    assert_eq!(rig.client().chat(&chat("m", "hi")).await.status, 200);
    assert_eq!((rig.mock(0).counts().loads, rig.mock(1).counts().loads), (0, 1));
}

#[tokio::test]
async fn more_waiters_than_the_limit_are_told_to_come_back() {
    let node = RawNode::start(vec![MockModel::available("m")], |_, _| None).await;
    let rig = in_front_of(&node, |config| config.limits.load_waiters_max = 2.try_into().unwrap()).await;
    let client = rig.client();
    let waiting = [0, 1].map(|_| {
        let client = client.clone();
        tokio::spawn(async move { client.chat(&chat("m", "hi")).await.status })
    });
    until(async || rig.metric("cortex_load_waiters{model=\"m\"}").await == Some(2.0)).await;
    let refused = rig.client().chat(&chat("m", "hi")).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (429, "model_loading"));
    assert!(refused.headers.contains_key("retry-after"));
    node.gate.notify_one();
    for status in join_all(waiting).await {
        assert_eq!(status.unwrap(), 200);
    }
}

#[tokio::test]
async fn a_model_unloaded_behind_the_gateways_back_is_loaded_again() {
    let rig = Rig::start([vec![MockModel::loaded("m")]]).await;
    let direct = Client::new(&rig.nodes[0].endpoint(), ClientTimeouts::default());
    direct.unload(&cortex_core::UnloadRequest { model_id: "m".into(), generation: Some(7) }).await.unwrap();
    let reply = rig.client().chat(&chat("m", "hi")).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(rig.mock(0).counts().loads_started, 1);
}

#[tokio::test]
async fn operators_load_and_unload_by_name_and_by_node() {
    let placed = PlacedModel { spec: ModelSpec::new("m"), nodes: vec!["a".into(), "b".into()] };
    let rig = Rig::with([vec![MockModel::available("m")], vec![MockModel::available("m")]], |config| {
        config.placement = Placement::new([placed], [("alias".to_owned(), "m".into())].into());
    })
    .await;
    let client = rig.client();
    let order = async |path: &str, body: serde_json::Value| client.post(path, &body).await.json();
    assert_eq!(order("/admin/models/load", json!({ "model": "alias", "node": "b" })).await, json!({ "model": "m", "nodes": ["b"] }));
    assert_eq!(order("/admin/models/load", json!({ "model": "m" })).await, json!({ "model": "m", "nodes": ["b"] }));
    assert_eq!(order("/admin/models/load", json!({ "model": "m", "node": "a" })).await, json!({ "model": "m", "nodes": ["a", "b"] }));
    assert_eq!(order("/admin/models/unload", json!({ "model": "m", "node": "b" })).await, json!({ "model": "m", "nodes": ["b"] }));
    assert_eq!(order("/admin/models/unload", json!({ "model": "m" })).await, json!({ "model": "m", "nodes": ["a"] }));
    assert_eq!((rig.mock(0).counts().unloads, rig.mock(1).counts().unloads), (1, 1));
    let cases = [
        (json!({ "model": "nobody" }), 404, "model_not_found"),
        (json!({ "model": "m", "node": "z" }), 404, "node_not_found"),
        (json!({ "modle": "m" }), 400, ""),
    ];
    for (body, status, code) in cases {
        let reply = client.post("/admin/models/load", &body).await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (status, code), "{body}");
    }
}
