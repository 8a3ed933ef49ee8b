//! Stopping: nothing new, the open requests to their end, and a limit to the patience.

use cortex_core::config::Millis;
use cortex_gateway::Drained;
use http_body_util::BodyExt;
use neuron_api::mock::{Faults, MockModel};
use tokio::net::TcpStream;

use crate::rig::{RawNode, Rig, chat, in_front_of, until};

#[tokio::test]
async fn open_requests_finish_and_new_ones_are_refused() {
    let node = RawNode::start(vec![MockModel::available("m")], |_, _| None).await;
    let rig = in_front_of(&node, |_| {}).await;
    let (addr, client) = (rig.gateway.addr, rig.client());
    let request = tokio::spawn(async move { client.chat(&chat("m", "hi")).await });
    until(async || rig.metric("cortex_load_waiters{model=\"m\"}").await == Some(1.0)).await;
    let stopping = tokio::spawn(rig.gateway.shutdown());
    until(async || TcpStream::connect(addr).await.is_err()).await;
    assert!(!stopping.is_finished());
    node.gate.notify_one();
    assert_eq!(request.await.unwrap().status, 200);
    assert_eq!(stopping.await.unwrap(), Drained { cut: 0 });
}

#[tokio::test]
async fn what_does_not_end_by_the_deadline_is_cut() {
    let rig = Rig::with([vec![MockModel::loaded("m")]], |config| config.timeouts.drain_ms_max = Millis::new(1)).await;
    rig.mock(0).set_faults("m", Faults { hang: true, ..Faults::default() });
    let (client, mock) = (rig.client(), rig.mock(0).clone());
    let request = tokio::spawn(async move { client.open_chat(&chat("m", "hi")).await.into_body().collect().await });
    mock.wait_for(|counts| counts.active == 1).await;
    assert_eq!(rig.gateway.shutdown().await, Drained { cut: 1 });
    mock.wait_for(|counts| counts.cancelled == 1).await;
    assert!(request.await.is_err(), "the client sees the connection break");
}
