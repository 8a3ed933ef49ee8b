//! `POST /v1/responses`: OpenAI's Responses dialect. Errors have the shape of the other OpenAI paths.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use cortex_core::openai::ApiError;

use crate::app::App;
use crate::call::Endpoint;
use crate::clock;
use crate::dispatch::dispatch_translated;
use crate::error::Refusal;
use crate::middleware::request_log::RequestId;
use crate::proxy::is_event_stream;
use crate::translate::responses::{request, stream};
use crate::translated;

pub(crate) async fn create(State(app): State<Arc<App>>, request: Request) -> Response {
    let (request_id, ping) = (RequestId::of(&request), app.config.timeouts.keep_alive_ms.duration());
    let mut echo = None;
    let translate = |body: Bytes| {
        let chat = request::responses(&body)?;
        echo = Some(chat.echo);
        Ok(chat.body)
    };
    let response = dispatch_translated(app, Endpoint::Responses, request, translate).await;
    let Some(echo) = echo.filter(|_| response.status().is_success()) else { return response };
    let created_at = clock::unix_s();
    if is_event_stream(response.headers()) {
        let translator = stream::StreamTranslator::new(echo, &request_id, created_at);
        return translated::stream(response, translator, ping);
    }
    let whole = translated::read(response).await.and_then(|body| stream::whole(&body, echo, &request_id, created_at));
    match whole {
        Some(whole) => Json(whole).into_response(),
        None => {
            let message = "The node broke off in the middle of the answer, or its answer cannot be read.";
            Refusal(ApiError::new(502, "server_error", Some("node_failed"), message)).into_response()
        }
    }
}
