//! Is the gateway there, and can it serve? And its figures.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use cortex_core::ModelId;
use cortex_core::openai::ApiError;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::Refusal;
use crate::fleet::Reach;
use crate::routing;

const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Some clients ask this before anything else.
pub(crate) async fn root() -> &'static str {
    concat!("cortex ", env!("CARGO_PKG_VERSION"), "\n")
}

/// The process answers.
pub(crate) async fn live() -> &'static str {
    "ok\n"
}

pub(crate) async fn version() -> Json<Value> {
    Json(json!({ "name": "cortex", "version": env!("CARGO_PKG_VERSION") }))
}

/// Nodes at a glance; 503 when none is ready.
pub(crate) async fn health(State(app): State<Arc<App>>) -> (StatusCode, Json<Value>) {
    let fleet = app.fleet.load();
    let ready = fleet.nodes().iter().filter(|node| node.reach == Reach::Ready).count();
    let total = fleet.nodes().len();
    let (code, status) = match ready {
        0 => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        ready if ready < total => (StatusCode::OK, "degraded"),
        _ => (StatusCode::OK, "ok"),
    };
    (code, Json(json!({ "status": status, "nodes_ready": ready, "nodes": total })))
}

#[derive(Deserialize)]
pub(crate) struct ReadyQuery {
    model: Option<String>,
}

/// 200 while requests are welcome; with `?model=ID`, while that model is in memory somewhere.
pub(crate) async fn ready(State(app): State<Arc<App>>, Query(query): Query<ReadyQuery>) -> Result<&'static str, Refusal> {
    let not_ready = |code, message: String| Refusal(ApiError::new(503, "server_error", Some(code), message).with_retry_after(1));
    if app.stopping.is_cancelled() {
        return Err(not_ready("shutting_down", "the gateway is stopping".into()));
    }
    let fleet = app.fleet.load();
    let Some(name) = query.model else {
        let any = fleet.nodes().iter().any(|node| node.reach == Reach::Ready);
        return if any { Ok("ready\n") } else { Err(not_ready("no_node_available", "no node is ready".into())) };
    };
    let model = fleet.placement().alias_target(&name).map_or(name.as_str(), ModelId::as_str);
    if fleet.replicas(model).len() == 0 {
        return Err(ApiError::model_not_found(&name).into());
    }
    match routing::is_loaded(&fleet, model) {
        true => Ok("ready\n"),
        false => Err(not_ready("model_not_loaded", format!("`{name}` is not in memory on any ready node"))),
    }
}

/// `GET /metrics` on the metrics listener.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Response {
    match app.metrics.render(&app.fleet.load(), &app.lifecycle.waiters(), &app.queues.lengths()) {
        Ok(text) => ([(CONTENT_TYPE, PROMETHEUS_TEXT)], text).into_response(),
        Err(error) => Refusal(ApiError::new(500, "server_error", Some("metrics"), error.to_string())).into_response(),
    }
}
