//! The node about itself.

use axum::Json;
use axum::extract::State;
use cortex_core::{Discovery, Health};
use serde::{Deserialize, Serialize};

use crate::Api;

/// The answer of `GET /version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionAnswer {
    /// Always `neuron`.
    pub name: String,
    /// The node's version.
    pub version: String,
}

pub(crate) async fn discovery(State(api): State<Api>) -> Json<Discovery> {
    Json(api.harness.discovery())
}

pub(crate) async fn health(State(api): State<Api>) -> Json<Health> {
    Json(api.harness.health())
}

pub(crate) async fn version(State(api): State<Api>) -> Json<VersionAnswer> {
    Json(VersionAnswer { name: "neuron".into(), version: api.harness.discovery().version })
}
