//! Another configuration under way, and what names of nodes must be.

use cortex_core::config::{Endpoint, Millis, NeuronEntry};
use cortex_core::{NodeState, Placement};
use cortex_gateway::{Gateway, Reloaded};
use http_body_util::BodyExt;
use neuron_api::mock::{MockConfig, MockModel, MockNeuron};

use crate::rig::{Rig, TestClient, chat, config, streamed, until};

#[tokio::test]
async fn nodes_come_and_go_under_load_and_no_request_is_lost() {
    let slow = MockModel { token_time: std::time::Duration::from_millis(8), ..MockModel::loaded("m") };
    let slow = slow.saying((0..20).map(|i| format!("{i} ")));
    let rig = Rig::start([vec![slow.clone()], vec![slow]]).await;
    let both = config(rig.nodes.iter().map(|node| node.addr));
    let mut one = both.clone();
    one.neurons.remove(0);
    one.placement = Placement::new([], [("alias".to_owned(), "m".into())].into());

    let mut streams = Vec::new();
    for talk in 0..16 {
        let client = rig.client();
        streams.push(tokio::spawn(async move { client.chat(&streamed("m", &format!("talk {talk}"))).await }));
    }
    let begun = |node: usize| rig.mock(node).counts().generations;
    until(async || begun(0) + begun(1) == 16).await;
    assert!(begun(0) > 0 && begun(1) > 0);
    let reloaded = rig.gateway.reload(one.clone()).unwrap();
    assert_eq!(reloaded, Reloaded { nodes_removed: vec!["a".into()], ..Reloaded::default() });
    let before = begun(0);
    for talk in 0..8 {
        assert_eq!(rig.client().chat(&chat("alias", &format!("talk {talk}"))).await.status, 200);
    }
    assert_eq!(begun(0), before, "a node that is gone gets nothing new");
    for stream in streams {
        let reply = stream.await.unwrap();
        assert!(reply.status == 200 && reply.text().ends_with("data: [DONE]\n\n"), "{}", reply.text());
    }
    assert_eq!(rig.gateway.reload(both).unwrap().nodes_added, ["a".into()]);
    until(async || rig.state(0) == NodeState::Ready).await;
    assert_eq!(rig.client().chat(&chat("alias", "hi")).await.status, 404, "the alias is gone");
    assert_eq!(rig.metric("cortex_config_reloads_total{outcome=\"ok\"}").await, Some(2.0));
}

#[tokio::test]
async fn what_cannot_change_under_way_is_named_and_what_cannot_be_used_is_counted() {
    let rig = Rig::start([vec![MockModel::loaded("m")]]).await;
    let mut other = config(rig.nodes.iter().map(|node| node.addr));
    other.timeouts.idle_ms_max = Millis::new(7);
    other.limits.tries_max = 1.try_into().unwrap();
    assert_eq!(rig.gateway.reload(other).unwrap().after_restart, ["limits", "timeouts"]);
    rig.gateway.reload_failed(&"line 3: nonsense");
    assert_eq!(rig.metric("cortex_config_reloads_total{outcome=\"failed\"}").await, Some(1.0));
    assert_eq!(rig.client().chat(&chat("m", "hi")).await.status, 200);
}

#[tokio::test]
async fn two_names_for_one_node_are_one_node() {
    let node = MockNeuron::new(MockConfig::new([MockModel::loaded("m")])).serve().await.unwrap();
    let mut config = config([node.addr]);
    let other_name = Endpoint::parse(&format!("http://localhost:{}", node.addr.port())).unwrap();
    config.neurons.push(NeuronEntry { name: "z".into(), endpoint: other_name, ca: None });
    config.timeouts.poll_ms = Millis::new(5);
    config.timeouts.probe_ms = Millis::new(5);
    let rig = Rig { gateway: Gateway::start(config).await.unwrap(), nodes: vec![node] };
    let refused = |state: NodeState| matches!(state, NodeState::Ejected { reason, .. } if reason.contains("the same neuron as"));
    until(async || usize::from(refused(rig.state(0))) + usize::from(refused(rig.state(1))) == 1).await;
    assert_eq!(rig.client().chat(&chat("m", "hi")).await.status, 200);
}

#[tokio::test]
async fn a_gateway_that_starts_again_knows_its_fleet_at_once_and_moves_nothing() {
    let rig = Rig::start([vec![MockModel::loaded("m"), MockModel::available("n")], vec![MockModel::loaded("o")]]).await;
    let addrs: Vec<_> = rig.nodes.iter().map(|node| node.addr).collect();
    let Rig { gateway, nodes } = rig;
    drop(gateway); // as a kill would: nothing is drained
    let started = std::time::Instant::now();
    let mut again = config(addrs);
    again.timeouts.reconcile_ms = Millis::new(1);
    let gateway = Gateway::start(again).await.unwrap();
    let client = TestClient::new(gateway.addr);
    for model in ["m", "o"] {
        assert_eq!(client.chat(&chat(model, "hi")).await.status, 200);
    }
    println!("a restarted gateway served again after {:?}", started.elapsed());
    assert_eq!(nodes.iter().map(|node| node.mock.counts().loads_started + node.mock.counts().unloads).sum::<usize>(), 0);
    let reply = client.open_chat(&streamed("m", "hi")).await.into_body().collect().await.unwrap();
    assert!(reply.to_bytes().ends_with(b"data: [DONE]\n\n"));
}
