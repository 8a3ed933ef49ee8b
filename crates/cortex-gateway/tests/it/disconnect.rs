//! A client that leaves takes its work with it, in every phase.

use cortex_core::config::{GatewayConfig, Millis};
use http_body_util::BodyExt;
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

async fn assert_gone(rig: &Rig) {
    until(async || rig.in_flight() == 0).await;
    let gone = "cortex_requests_total{endpoint=\"/v1/chat/completions\",model=\"m\",node=\"a\",outcome=\"client_gone\"}";
    until(async || rig.metric(gone).await == Some(1.0)).await;
}
