//! Errors as HTTP answers, in OpenAI's shape; the routes of another dialect put them into its own words.

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use cortex_core::openai::ApiError;
pub(crate) use neuron_api::Failure as Refusal;

use crate::anthropic;
use crate::middleware::request_log::RequestId;

pub(crate) async fn no_such_route(request: Request) -> Response {
    let message = format!(
        "There is no {} {} here. Clients use /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/rerank, /v1/responses, /v1/messages, /v1/models.",
        request.method(),
        request.uri().path()
    );
    in_callers_words(&request, ApiError::new(404, "invalid_request_error", Some("not_found"), message))
}

pub(crate) async fn no_such_method(request: Request) -> Response {
    let message = format!("{} does not take {}.", request.uri().path(), request.method());
    in_callers_words(&request, ApiError::new(405, "invalid_request_error", Some("method_not_allowed"), message))
}

/// The error in the dialect of who asks.
pub(crate) fn in_callers_words(request: &Request, error: ApiError) -> Response {
    if anthropic::is_spoken_in(request) { anthropic::refusal(&error, &RequestId::of(request)) } else { Refusal(error).into_response() }
}
