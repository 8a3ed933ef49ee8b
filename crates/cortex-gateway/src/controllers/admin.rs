//! What operators see and order: `GET /admin/{fleet,plan}`, `POST /admin/models/{load,unload}`, `POST /admin/nodes/{name}/{drain,undrain}`.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use cortex_core::openai::ApiError;
use cortex_core::{FleetReport, ModelAction, ModelActionReport, ModelId, NodeId};
use neuron_api::ClientError;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::Refusal;
use crate::fleet::{Fleet, Hold, Reach, Standing};
use crate::nodes::{Order, unknown_node};

pub(crate) async fn fleet(State(app): State<Arc<App>>) -> Json<FleetReport> {
    Json(app.report())
}

/// Answers when the model serves.
pub(crate) async fn load(State(app): State<Arc<App>>, body: Bytes) -> Result<Json<ModelActionReport>, Refusal> {
    let (model, node) = action(&app, &body)?;
    match node {
        Some(node) => drop(app.nodes.load(&node, &model, &Order::default()).await.map_err(refusal)?),
        None => app.lifecycle.ensure_loaded(&model).await?,
    }
    let nodes = loaded_on(&app.fleet.load(), &model);
    Ok(Json(ModelActionReport { model, nodes }))
}

/// Answers when the model has left memory; requests that it was serving end first.
pub(crate) async fn unload(State(app): State<Arc<App>>, body: Bytes) -> Result<Json<ModelActionReport>, Refusal> {
    let (model, node) = action(&app, &body)?;
    let nodes = match node {
        Some(node) => vec![node],
        None => loaded_on(&app.fleet.load(), &model),
    };
    let order = Order::default();
    for outcome in futures::future::join_all(nodes.iter().map(|node| app.nodes.unload(node, &model, &order))).await {
        outcome.map_err(refusal)?;
    }
    Ok(Json(ModelActionReport { model, nodes }))
}

/// What was decided last, and is being done.
pub(crate) async fn plan(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({ "actions": **app.plan.load() }))
}

/// The node finishes what it has and gets nothing new, until told otherwise.
pub(crate) async fn drain(State(app): State<Arc<App>>, Path(node): Path<String>) -> Result<Json<FleetReport>, Refusal> {
    hold(&app, &node.into(), Some(Hold::Operator))
}

/// The node gets requests again.
pub(crate) async fn undrain(State(app): State<Arc<App>>, Path(node): Path<String>) -> Result<Json<FleetReport>, Refusal> {
    hold(&app, &node.into(), None)
}

fn hold(app: &App, node: &NodeId, hold: Option<Hold>) -> Result<Json<FleetReport>, Refusal> {
    if app.fleet.load().node(node).is_none() {
        return Err(unknown_node(node).into());
    }
    app.fleet.update(|fleet| fleet.held(node, hold));
    app.lifecycle.wake();
    Ok(Json(app.report()))
}

fn action(app: &App, body: &[u8]) -> Result<(ModelId, Option<NodeId>), Refusal> {
    let action: ModelAction = serde_json::from_slice(body)
        .map_err(|error| ApiError::invalid(format!("The body must be {{\"model\": \"…\", \"node\": \"…\" (optional)}}: {error}.")))?;
    let fleet = app.fleet.load();
    let model = fleet.placement().alias_target(action.model.as_str()).cloned().unwrap_or(action.model);
    match &action.node {
        Some(node) if fleet.node(node).is_none() => Err(unknown_node(node).into()),
        None if fleet.replicas(model.as_str()).len() == 0 => Err(ApiError::model_not_found(model.as_str()).into()),
        _ => Ok((model, action.node)),
    }
}

fn loaded_on(fleet: &Fleet, model: &ModelId) -> Vec<NodeId> {
    let loaded =
        fleet.replicas(model.as_str()).filter(|(node, replica)| replica.standing == Standing::Loaded && node.reach == Reach::Ready);
    loaded.map(|(node, _)| node.id.clone()).collect()
}

fn refusal(error: ClientError) -> Refusal {
    match error {
        ClientError::Status(error) => Refusal(error),
        ClientError::Unreachable { .. } => {
            Refusal(ApiError::new(503, "server_error", Some("node_unreachable"), error.to_string()).with_retry_after(1))
        }
        ClientError::Protocol { .. } => Refusal(ApiError::new(502, "server_error", Some("node_failed"), error.to_string())),
    }
}
