//! `POST /v1/rerank`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;

use crate::app::App;
use crate::call::Endpoint;
use crate::dispatch::dispatch;

pub(crate) async fn create(State(app): State<Arc<App>>, request: Request) -> Response {
    dispatch(app, Endpoint::Rerank, request).await
}
