//! `GET /v1/models`: every model that some node can serve, loaded or not.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use cortex_core::ModelId;
use cortex_core::openai::{ApiError, ModelEntry, ModelList};

use crate::app::App;
use crate::error::Refusal;

pub(crate) async fn list(State(app): State<Arc<App>>) -> Json<ModelList> {
    let fleet = app.fleet.load();
    Json(ModelList::new(fleet.models().filter_map(|model| fleet.model_entry(model.as_str(), app.started_unix_s)).collect()))
}

pub(crate) async fn entry(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<ModelEntry>, Refusal> {
    let fleet = app.fleet.load();
    let model = fleet.placement().alias_target(&id).map_or(id.as_str(), ModelId::as_str);
    match fleet.model_entry(model, app.started_unix_s) {
        Some(entry) => Ok(Json(entry)),
        None => Err(ApiError::model_not_found(&id).into()),
    }
}
