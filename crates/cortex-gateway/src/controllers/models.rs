//! `GET /v1/models`: every model that some node can serve, loaded or not, in the dialect of who asks.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use cortex_core::ModelId;
use cortex_core::openai::{ApiError, ModelList};

use crate::anthropic;
use crate::app::App;
use crate::error::in_callers_words;
use crate::middleware::auth::Asker;
use crate::translate::response;

pub(crate) async fn list(State(app): State<Arc<App>>, request: Request) -> Response {
    let fleet = app.fleet.load();
    let asker = Asker::of(&request);
    let allowed = |model: &&ModelId| asker.as_ref().is_none_or(|asker| asker.may_use(model, model.as_str()).is_ok());
    let list =
        ModelList::new(fleet.models().filter(allowed).filter_map(|model| fleet.model_entry(model.as_str(), app.started_unix_s)).collect());
    if anthropic::is_spoken_in(&request) { Json(response::models(list)).into_response() } else { Json(list).into_response() }
}

pub(crate) async fn entry(State(app): State<Arc<App>>, Path(id): Path<String>, request: Request) -> Response {
    let fleet = app.fleet.load();
    let model = fleet.placement().alias_target(&id).map_or(id.as_str(), ModelId::as_str);
    match fleet.model_entry(model, app.started_unix_s) {
        Some(entry) if anthropic::is_spoken_in(&request) => Json(response::model(entry)).into_response(),
        Some(entry) => Json(entry).into_response(),
        None => in_callers_words(&request, ApiError::model_not_found(&id)),
    }
}
