//! Answers on their way to clients of Anthropic's dialect. What they say is decided in `translate`; here it is read and sent.

use std::time::Duration;

use axum::Json;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use cortex_core::anthropic::error::{ErrorDetail, ErrorKind};
use cortex_core::openai::ApiError;
use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::proxy::is_event_stream;
use crate::translate::{Asked, StreamTranslator, error, response};
use crate::translated::{self, read};

/// What an answer needs to know beside the request.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    pub(crate) request_id: String,
    /// A stream that has nothing to say says so this often.
    pub(crate) ping: Duration,
}

/// The header that clients of this dialect send with everything.
pub(crate) fn is_version_sent(headers: &HeaderMap) -> bool {
    headers.contains_key("anthropic-version")
}

pub(crate) fn is_spoken_in(request: &Request) -> bool {
    request.uri().path().starts_with("/v1/messages") || is_version_sent(request.headers())
}

/// A node's good answer, streamed or whole.
pub(crate) async fn answer(answer: Response, asked: Asked, way: Way) -> Response {
    if is_event_stream(answer.headers()) {
        let translator = StreamTranslator::new(asked, &way.request_id);
        return sent(translated::stream(answer, translator, way.ping), &way.request_id);
    }
    let message = read(answer).await.and_then(|body| response::message(&body, asked, &way.request_id));
    match message {
        Some(message) => sent(Json(message), &way.request_id),
        None => broken(&way.request_id),
    }
}

/// A node's good answer to `/tokenize`.
pub(crate) async fn count(answer: Response, request_id: &str) -> Response {
    match read(answer).await.and_then(|body| response::token_count(&body)) {
        Some(count) => sent(Json(count), request_id),
        None => broken(request_id),
    }
}

/// An error of the gateway or of a node.
pub(crate) async fn error(answer: Response, request_id: &str) -> Response {
    let (status, retry_after) = (answer.status().as_u16(), answer.headers().get(RETRY_AFTER).cloned());
    let body = read(answer).await.unwrap_or_default();
    let (status, detail) = error::of_answer(status, &body);
    let mut response = refused(status, detail, request_id);
    if let Some(retry_after) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, retry_after);
    }
    response
}

/// An error that is known as a value.
pub(crate) fn refusal(error: &ApiError, request_id: &str) -> Response {
    let (status, detail) = error::of_error(error);
    refused(status, detail, request_id)
}

fn broken(request_id: &str) -> Response {
    let message = "the node broke off in the middle of the answer, or its answer cannot be read";
    refused(ErrorKind::Api.status(), ErrorDetail { kind: ErrorKind::Api, message: message.into() }, request_id)
}

fn refused(status: u16, detail: ErrorDetail, request_id: &str) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    sent((status, Json(detail.answer(request_id))), request_id)
}

/// This dialect's name for the request's id goes beside ours.
fn sent(answer: impl IntoResponse, request_id: &str) -> Response {
    let mut response = answer.into_response();
    if let Ok(id) = HeaderValue::from_str(request_id) {
        response.headers_mut().insert("request-id", id);
    }
    response
}
