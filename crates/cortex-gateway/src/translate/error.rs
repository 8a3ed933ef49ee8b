//! Errors of the gateway and of nodes in Anthropic's words.

use cortex_core::anthropic::error::{ErrorDetail, ErrorKind};
use cortex_core::openai::{ApiError, ErrorBody, error};

/// An error answer: its status (which is Anthropic's own where there is one) and what the client reads.
pub(crate) fn of_answer(status: u16, body: &[u8]) -> (u16, ErrorDetail) {
    let detail = match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => of_detail(status, &body.error),
        Err(_) => ErrorDetail { kind: kind(status, None), message: format!("the answer was {status}") },
    };
    with_status(status, detail)
}

/// The same for an error that is no answer yet.
pub(crate) fn of_error(error: &ApiError) -> (u16, ErrorDetail) {
    with_status(error.status, of_detail(error.status, &error.body.error))
}

/// 405 and 408 tell more than the 400 of their family.
fn with_status(status: u16, detail: ErrorDetail) -> (u16, ErrorDetail) {
    let status = if detail.kind == ErrorKind::InvalidRequest { status } else { detail.kind.status() };
    (status, detail)
}

/// An error in the middle of a stream, whose status is gone.
pub(super) fn of_event(error: &error::ErrorDetail) -> ErrorDetail {
    let status = match (error.kind.as_str(), error.code.as_deref()) {
        (_, Some("model_not_found")) => 404,
        (_, Some("model_not_loaded" | "shutting_down" | "no_node_available" | "node_unreachable")) => 503,
        ("rate_limit_error", _) => 429,
        ("invalid_request_error", _) => 400,
        _ => 500,
    };
    of_detail(status, error)
}

fn of_detail(status: u16, error: &error::ErrorDetail) -> ErrorDetail {
    let message = match error.context_overflow() {
        Some((prompt, context)) => format!("prompt is too long: {prompt} tokens > {context} maximum"),
        None => error.message.clone(),
    };
    ErrorDetail { kind: kind(status, error.code.as_deref()), message }
}

fn kind(status: u16, code: Option<&str>) -> ErrorKind {
    match (status, code) {
        (_, Some("overloaded" | "model_loading" | "queue_full")) => ErrorKind::Overloaded,
        (_, Some("cannot_load")) => ErrorKind::Api,
        (401, _) => ErrorKind::Authentication,
        (403, _) => ErrorKind::Permission,
        (404, _) => ErrorKind::NotFound,
        (413, _) => ErrorKind::RequestTooLarge,
        (429, _) => ErrorKind::RateLimit,
        (503 | 529, _) => ErrorKind::Overloaded,
        (400..500, _) => ErrorKind::InvalidRequest,
        _ => ErrorKind::Api,
    }
}
