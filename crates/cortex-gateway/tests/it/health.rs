//! The questions of load balancers, operators and clients that look before they ask.

use cortex_core::{FleetReport, NodeState};
use http::{HeaderMap, Method};
use neuron_api::mock::MockModel;

use crate::rig::{Rig, chat};

#[tokio::test]
async fn the_gateway_tells_whether_it_lives_and_can_serve() {
    let mut rig = Rig::start([vec![MockModel::loaded("m/x"), MockModel::available("cold")]]).await;
    let ask = async |rig: &Rig, path: &str| rig.client().get(path).await.status.as_u16();
    let cases = [
        ("/live", 200, 200),
        ("/version", 200, 200),
        ("/health", 200, 503),
        ("/ready", 200, 503),
        ("/ready?model=m/x", 200, 503),
        ("/ready?model=cold", 503, 503),
        ("/ready?model=nobody", 404, 404),
    ];
    for (path, with_node, _) in cases {
        assert_eq!(ask(&rig, path).await, with_node, "{path}");
    }
    rig.nodes.clear();
    rig.client().chat(&chat("m/x", "hi")).await;
    for (path, _, without_node) in cases {
        assert_eq!(ask(&rig, path).await, without_node, "{path} without its node");
    }
    let head = rig.client().request(Method::HEAD, "/", HeaderMap::new(), "").await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
}

#[tokio::test]
async fn the_fleet_report_tells_nodes_models_devices_and_load() {
    let rig = Rig::start([vec![MockModel::loaded("m")], vec![MockModel::available("n")]]).await;
    let report: FleetReport = serde_json::from_value(rig.client().get("/admin/fleet").await.json()).unwrap();
    assert_eq!(report.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let node = &report.nodes[0];
    assert_eq!((&node.state, node.endpoint.clone()), (&NodeState::Ready, rig.nodes[0].endpoint()));
    assert_eq!(node.models[0].id.as_str(), "m");
    assert_eq!(node.discovery.as_ref().unwrap().devices.len(), 1);
    assert_eq!(node.health.as_ref().unwrap().models.len(), 1);
    assert!(node.seen_s_ago.is_some());
}
