//! Nodes that die, hang up, refuse or come back.

use std::sync::atomic::{AtomicUsize, Ordering};

use cortex_core::NodeState;
use cortex_core::config::Millis;
use futures::future::join_all;
use neuron_api::mock::{Faults, MockConfig, MockModel, MockNeuron};

use crate::rig::{RawNode, Rig, chat, config, in_front_of, streamed, until};

#[tokio::test]
async fn a_dead_node_costs_no_request_while_another_has_the_model() {
    let mut rig = Rig::start([vec![MockModel::loaded("m")], vec![MockModel::loaded("m")]]).await;
    rig.nodes.remove(0);
    let client = rig.client();
    let requests = (0..200).map(|i| {
        let client = client.clone();
        let body = if i % 2 == 0 { chat("m", "hi") } else { streamed("m", "hi") };
        tokio::spawn(async move { client.chat(&body).await })
    });
    for reply in join_all(requests).await {
        let reply = reply.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    assert!(rig.metric("cortex_retries_total{model=\"m\",node=\"a\",reason=\"unreachable\"}").await >= Some(1.0));
    assert!(matches!(rig.state(0), NodeState::Ejected { reason, .. } if reason.contains("refused")));
    assert_eq!(rig.metric("cortex_node_up{node=\"a\"}").await, Some(0.0));
    until(async || rig.in_flight() == 0).await;
}

#[tokio::test]
async fn a_node_that_comes_back_is_found_and_known_as_restarted() {
    let mut rig = Rig::with([vec![MockModel::loaded("m")]], |config| config.timeouts.probe_ms = Millis::new(1)).await;
    let addr = rig.nodes.remove(0).addr;
    let refused = rig.client().chat(&chat("m", "hi")).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (503, "node_unreachable"));
    assert!(refused.headers.contains_key("retry-after"));

    let back = MockNeuron::new(MockConfig::new([MockModel::available("m"), MockModel::loaded("n")]));
    rig.nodes.push(back.serve_on(addr).await.unwrap());
    until(async || rig.state(0) == NodeState::Ready).await;
    assert_eq!(rig.client().chat(&chat("n", "hi")).await.status, 200);
    assert_eq!(rig.metric("cortex_node_restarts_total{node=\"a\"}").await, Some(1.0));
}

#[tokio::test]
async fn a_stream_cut_in_the_middle_ends_in_an_error_event_and_never_looks_finished() {
    let model = MockModel::loaded("m").saying(["one ", "two ", "three ", "four "]);
    let rig = Rig::start([vec![model]]).await;
    rig.mock(0).set_faults("m", Faults { cut_after: Some(2), ..Faults::default() });
    let reply = rig.client().chat(&streamed("m", "hi")).await;
    let text = reply.text();
    let events: Vec<&str> = text.split("\n\n").filter(|event| !event.is_empty() && !event.starts_with(':')).collect();
    assert!(text.contains("two ") && !text.contains("three"), "{text}");
    assert!(events.last().unwrap().starts_with("data: {\"error\":{\"message\":\"the node broke off"), "{text}");
    assert!(!text.contains("[DONE]"), "{text}");
    until(async || rig.in_flight() == 0).await;
    let cut = "cortex_requests_total{endpoint=\"/v1/chat/completions\",model=\"m\",node=\"a\",outcome=\"cut\"}";
    until(async || rig.metric(cut).await == Some(1.0)).await;
}

#[tokio::test]
async fn a_generation_that_dies_before_its_first_token_is_answered_by_another_node() {
    let rig = Rig::start([vec![MockModel::loaded("m")], vec![MockModel::loaded("m")]]).await;
    rig.mock(0).set_faults("m", Faults { die_after: Some(0), ..Faults::default() });
    for talk in 0..16 {
        let text = format!("hi {talk}");
        let body = if talk % 2 == 0 { chat("m", &text) } else { streamed("m", &text) };
        let reply = rig.client().chat(&body).await;
        assert_eq!(reply.status, 200);
        assert!(reply.text().contains("hi") && !reply.text().contains("error"), "{}", reply.text());
    }
    assert!(rig.mock(0).counts().died > 0);
}

#[tokio::test]
async fn with_no_other_node_the_nodes_own_error_is_the_answer() {
    let rig = Rig::start([vec![MockModel::loaded("m")]]).await;
    let cases = [
        (Faults { die_after: Some(0), ..Faults::default() }, 500, "internal_error"),
        (Faults { overloaded: Some(9), ..Faults::default() }, 429, "overloaded"),
    ];
    for (faults, status, code) in cases {
        rig.mock(0).set_faults("m", faults);
        for body in [chat("m", "hi"), streamed("m", "hi")] {
            let reply = rig.client().chat(&body).await;
            assert_eq!((reply.status.as_u16(), reply.code().as_str()), (status, code), "{body}: {}", reply.text());
            assert_eq!(reply.headers.get("retry-after").map(|after| after.to_str().unwrap()), (status == 429).then_some("9"));
        }
    }
}

#[tokio::test]
async fn a_busy_or_draining_node_is_passed_over() {
    let rig = Rig::start([vec![MockModel::loaded("m")], vec![MockModel::loaded("m")]]).await;
    rig.mock(0).set_faults("m", Faults { overloaded: Some(9), ..Faults::default() });
    for _ in 0..4 {
        assert_eq!(rig.client().chat(&chat("m", "hi")).await.status, 200);
    }
    rig.mock(1).set_ready(false);
    rig.mock(0).set_faults("m", Faults::default());
    for _ in 0..4 {
        assert_eq!(rig.client().chat(&chat("m", "hi")).await.status, 200);
    }
    assert_eq!(rig.state(1), NodeState::Draining);
    assert_eq!(rig.mock(0).counts().finished + rig.mock(1).counts().finished, 8);
}

#[tokio::test]
async fn a_node_that_takes_the_request_and_says_nothing_is_given_up_in_time() {
    let hang = MockModel::loaded("m");
    let rig = Rig::with([vec![hang], vec![MockModel::loaded("m")]], |config| config.timeouts.first_byte_ms_max = Millis::new(50)).await;
    rig.mock(0).set_faults("m", Faults { hang_admission: true, ..Faults::default() });
    for talk in 0..6 {
        // The healthy node, too, has only these 50 ms; on a machine that slow the answer is a timeout, never silence.
        let reply = rig.client().chat(&streamed("m", &format!("hi {talk}"))).await;
        assert!([200, 504].contains(&reply.status.as_u16()), "{}", reply.text());
    }
    assert!(rig.metric("cortex_retries_total{model=\"m\",node=\"a\",reason=\"timed_out\"}").await >= Some(1.0));
}

#[tokio::test]
async fn a_whole_answer_that_takes_too_long_is_not_begun_again_elsewhere() {
    let rig = Rig::with([vec![MockModel::loaded("m")], vec![MockModel::loaded("m")]], |config| {
        config.timeouts.first_byte_ms_max = Millis::new(1);
    })
    .await;
    for node in [0, 1] {
        rig.mock(node).set_faults("m", Faults { hang: true, ..Faults::default() });
    }
    let reply = rig.client().chat(&chat("m", "hi")).await;
    assert_eq!((reply.status.as_u16(), reply.code().as_str()), (504, "node_timed_out"));
    assert!(rig.mock(0).counts().generations + rig.mock(1).counts().generations <= 1);
}

#[tokio::test]
async fn a_connection_that_breaks_before_the_answer_is_replayed_once_where_there_is_no_other_node() {
    let broken = AtomicUsize::new(0);
    let node = RawNode::start(vec![MockModel::loaded("m")], move |path, _| {
        assert!(!path.starts_with("/v1/chat") || broken.fetch_add(1, Ordering::Relaxed) != 0, "the node breaks off");
        None
    })
    .await;
    let rig = in_front_of(&node, |_| {}).await;
    assert_eq!(rig.client().chat(&chat("m", "hi")).await.status, 200);
    assert_eq!(rig.metric("cortex_retries_total{model=\"m\",node=\"a\",reason=\"reset\"}").await, Some(1.0));
}

#[tokio::test]
async fn a_request_that_kills_what_serves_it_kills_two_nodes_at_most() {
    let rig = Rig::start([vec![MockModel::loaded("m")], vec![MockModel::loaded("m")], vec![MockModel::loaded("m")]]).await;
    for node in 0..3 {
        rig.mock(node).set_faults("m", Faults { cut_after: Some(0), ..Faults::default() });
    }
    let reply = rig.client().chat(&chat("m", "deadly")).await;
    assert_eq!((reply.status.as_u16(), reply.code().as_str()), (502, "node_failed"), "{}", reply.text());
    assert_eq!((0..3).map(|node| rig.mock(node).counts().generations).sum::<usize>(), 2);
}

#[tokio::test]
async fn a_node_whose_requests_fail_is_out_although_it_answers_polls() {
    let rig = Rig::start([vec![MockModel::loaded("m")], vec![MockModel::loaded("m")]]).await;
    rig.mock(0).set_faults("m", Faults { die_after: Some(0), ..Faults::default() });
    let mut sent = 0;
    while rig.state(0) == NodeState::Ready {
        sent += 1;
        assert!(sent < 100, "it is never ejected");
        assert_eq!(rig.client().chat(&chat("m", &format!("request {sent}"))).await.status, 200);
    }
    assert!(matches!(rig.state(0), NodeState::Ejected { reason, .. } if reason.contains("its requests fail")));
    assert_eq!(rig.mock(0).counts().died, 5);
}

#[tokio::test]
async fn an_answer_that_takes_longer_than_any_may_is_cut_with_the_reason() {
    let slow = MockModel { context: usize::MAX, token_time: std::time::Duration::from_millis(1), ..MockModel::loaded("m") };
    let slow = slow.saying((0..100_000).map(|i| format!("{i} ")));
    let rig = Rig::with([vec![slow]], |config| config.timeouts.total_ms_max = Millis::new(300)).await;
    let text = rig.client().chat(&streamed("m", "hi")).await.text();
    assert!(text.contains("total_ms_max") && !text.contains("[DONE]"), "{text}");
    let whole = rig.client().chat(&chat("m", "hi")).await;
    assert_eq!(whole.status, 504, "{}", whole.text());
    rig.mock(0).wait_for(|counts| counts.cancelled == 2 && counts.active == 0).await;
}

#[tokio::test]
async fn a_node_that_starts_after_the_gateway_is_found() {
    let parked = MockNeuron::new(MockConfig::new([MockModel::loaded("m")]));
    let reserved = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = reserved.local_addr().unwrap();
    drop(reserved);
    let mut config = config([addr]);
    config.timeouts.probe_ms = Millis::new(1);
    let gateway = cortex_gateway::Gateway::start(config).await.unwrap();
    let rig = Rig { gateway, nodes: vec![parked.serve_on(addr).await.unwrap()] };
    until(async || rig.state(0) == NodeState::Ready).await;
    assert_eq!(rig.client().chat(&chat("m", "hi")).await.status, 200);
}
