//! A client that leaves takes its work with it, in every phase.

use std::convert::Infallible;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use cortex_core::config::{GatewayConfig, Millis};
use cortex_core::headers::{USAGE, encode_usage};
use cortex_core::{Usage, sse};
use futures::stream::{self, Stream, StreamExt};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use neuron_api::mock::{Faults, MockModel};

use crate::rig::{RawNode, Rig, chat, in_front_of, streamed, until};

#[tokio::test]
async fn leaving_while_the_node_prefills_cancels_the_generation() {
    // The last client has seen the head and comments already.
    for (body, keep_alive_ms) in [(chat("m", "hi"), 60_000), (streamed("m", "hi"), 60_000), (streamed("m", "hi"), 1)] {
        let set = |config: &mut GatewayConfig| config.timeouts.keep_alive_ms = Millis::new(keep_alive_ms);
        let rig = Rig::with([vec![MockModel::loaded("m")]], set).await;
        rig.mock(0).set_faults("m", Faults { hang: true, ..Faults::default() });
        let client = rig.client();
        let request = tokio::spawn(async move { client.chat(&body).await });
        rig.mock(0).wait_for(|counts| counts.active == 1).await;
        request.abort();
        rig.mock(0).wait_for(|counts| counts.cancelled == 1 && counts.active == 0).await;
        assert_gone(&rig).await;
    }
}

#[tokio::test]
async fn leaving_in_the_middle_of_a_stream_cancels_the_generation() {
    let endless = MockModel { context: usize::MAX, ..MockModel::loaded("m") }.saying((0..400_000).map(|i| i.to_string()));
    let rig = Rig::start([vec![endless]]).await;
    let mut stream = rig.client().open_chat(&streamed("m", "hi")).await;
    assert!(stream.frame().await.unwrap().unwrap().is_data());
    drop(stream);
    rig.mock(0).wait_for(|counts| counts.cancelled == 1 && counts.active == 0).await;
    assert_eq!(rig.mock(0).counts().finished, 0);
    assert_gone(&rig).await;
}

#[tokio::test]
async fn leaving_while_the_model_loads_gives_the_place_back() {
    let node = RawNode::start(vec![MockModel::available("m")], |_, _| None).await;
    let rig = in_front_of(&node, |_| {}).await;
    let client = rig.client();
    let request = tokio::spawn(async move { client.chat(&chat("m", "hi")).await });
    until(async || rig.metric("cortex_load_waiters{model=\"m\"}").await == Some(1.0)).await;
    request.abort();
    until(async || rig.metric("cortex_load_waiters{model=\"m\"}").await == Some(0.0)).await;
    node.gate.notify_one();
    node.mock.wait_for(|counts| counts.loads == 1).await;
    assert_eq!(node.mock.counts().generations, 0);
}

#[tokio::test]
async fn who_leaves_at_the_end_of_a_stream_has_it_counted() {
    let node = RawNode::start(vec![MockModel::loaded("m")], |path, _| path.starts_with("/v1/chat").then(|| finished(late_usage()))).await;
    let rig = in_front_of(&node, |_| {}).await;
    read_to_the_end_and_leave(&rig).await;
    assert_eq!(rig.metric(ENDED_WELL).await, Some(1.0));
    let tokens = "cortex_tokens_total{direction=\"completion\",model=\"m\",node=\"a\"}";
    assert_eq!(rig.metric(tokens).await, Some(3.0));
}

#[tokio::test]
async fn a_usage_that_never_comes_keeps_the_end_from_nobody() {
    let node =
        RawNode::start(vec![MockModel::loaded("m")], |path, _| path.starts_with("/v1/chat").then(|| finished(stream::pending()))).await;
    let rig = in_front_of(&node, |_| {}).await;
    read_to_the_end_and_leave(&rig).await;
    assert_eq!(rig.metric(ENDED_WELL).await, Some(1.0));
}

const ENDED_WELL: &str = "cortex_requests_total{endpoint=\"/v1/chat/completions\",model=\"m\",node=\"a\",outcome=\"ok\"}";

/// A stream that is whole, and what the node sends after it.
fn finished(rest: impl Stream<Item = Frame<Bytes>> + Send + 'static) -> Response {
    let whole = [Bytes::from_static(b"data: {\"choices\":[]}\n\n"), sse::DONE].map(Frame::data);
    let frames = stream::iter(whole).chain(rest).map(Ok::<_, Infallible>);
    Response::builder().header(CONTENT_TYPE, "text/event-stream").header("trailer", USAGE).body(Body::new(StreamBody::new(frames))).unwrap()
}

/// Long after the end, as steps of the runtime go.
fn late_usage() -> impl Stream<Item = Frame<Bytes>> {
    stream::once(async {
        for _ in 0..10_000 {
            tokio::task::yield_now().await;
        }
        let usage = encode_usage(&Usage { prompt_tokens: 5, completion_tokens: 3, ..Default::default() });
        Frame::trailers(HeaderMap::from_iter([(HeaderName::from_static(USAGE), usage.parse().unwrap())]))
    })
}

async fn read_to_the_end_and_leave(rig: &Rig) {
    let mut answer = rig.client().open_chat(&streamed("m", "hi")).await;
    let mut text = Vec::new();
    while !text.ends_with(&sse::DONE) {
        text.extend(answer.frame().await.unwrap().unwrap().into_data().unwrap());
    }
    drop(answer);
    until(async || rig.in_flight() == 0).await;
}

async fn assert_gone(rig: &Rig) {
    until(async || rig.in_flight() == 0).await;
    let gone = "cortex_requests_total{endpoint=\"/v1/chat/completions\",model=\"m\",node=\"a\",outcome=\"client_gone\"}";
    until(async || rig.metric(gone).await == Some(1.0)).await;
}
