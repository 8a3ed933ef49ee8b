//! The merged catalogue.

use cortex_core::model::ModelSpec;
use cortex_core::{Capability, PlacedModel, Placement};
use neuron_api::mock::MockModel;
use serde_json::{Value, json};

use crate::rig::Rig;

fn in_short(list: &Value) -> Vec<Value> {
    let short = |entry: &Value| json!([entry["id"], entry["state"], entry["nodes"]]);
    list["data"].as_array().unwrap().iter().map(short).collect()
}

#[tokio::test]
async fn the_list_merges_what_every_node_can_serve_loaded_or_not() {
    let mut seer = MockModel::available("Qwen/Seer");
    seer.capabilities = vec![Capability::Chat, Capability::Vision];
    let rig = Rig::with(
        [vec![MockModel::loaded("small"), seer.clone()], vec![MockModel::available("small"), MockModel::available("only-b")], vec![]],
        |config| {
            let placed = PlacedModel { spec: ModelSpec::new("hub/never-fetched"), nodes: vec!["c".into()] };
            config.placement = Placement::new([placed], [("eyes".to_owned(), "Qwen/Seer".into())].into());
        },
    )
    .await;
    let list = rig.client().get("/v1/models").await.json();
    assert_eq!(list["object"], "list");
    assert_eq!(
        in_short(&list),
        [
            json!(["Qwen/Seer", "available", ["a"]]),
            json!(["hub/never-fetched", "available", ["c"]]),
            json!(["only-b", "available", ["b"]]),
            json!(["small", "loaded", ["a", "b"]]),
        ]
    );
    let entry = &list["data"][0];
    assert_eq!((&entry["context_length"], &entry["capabilities"]), (&json!(seer.context), &json!(["chat", "vision"])));
    for name in ["Qwen/Seer", "eyes"] {
        assert_eq!(rig.client().get(&format!("/v1/models/{name}")).await.json(), *entry);
    }
    let missing = rig.client().get("/v1/models/Qwen/Nobody").await;
    assert_eq!((missing.status.as_u16(), missing.code().as_str()), (404, "model_not_found"));
}

#[tokio::test]
async fn a_model_whose_nodes_are_gone_stays_listed_as_unavailable() {
    let mut rig = Rig::start([vec![MockModel::loaded("m")]]).await;
    rig.nodes.clear();
    assert_eq!(rig.client().chat(&crate::rig::chat("m", "hi")).await.status, 503);
    assert_eq!(in_short(&rig.client().get("/v1/models").await.json()), [json!(["m", "unavailable", ["a"]])]);
}
