//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;

use crate::app::App;
use crate::call::Endpoint;
use crate::dispatch::dispatch_translated;
use crate::translate::responses::request::as_chat;

pub(crate) async fn create(State(app): State<Arc<App>>, request: Request) -> Response {
    dispatch_translated(app, Endpoint::Chat, request, as_chat).await
}
