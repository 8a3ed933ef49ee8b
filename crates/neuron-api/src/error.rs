//! Errors as HTTP answers, in OpenAI's shape whatever the route.

use axum::Json;
use axum::http::header::RETRY_AFTER;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use cortex_core::HarnessError;
use cortex_core::openai::ApiError;

/// An [`ApiError`] as an answer: its status, its body, and `Retry-After` where it helps.
#[derive(Debug)]
pub struct Failure(pub ApiError);

impl<E: Into<ApiError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.0.body)).into_response();
        if let Some(seconds) = self.0.retry_after_s {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// What a generation says when its events end without a finish.
pub(crate) fn cut_short() -> HarnessError {
    HarnessError::Internal("the generation ended without saying why".into())
}

pub(crate) async fn no_such_route(method: Method, uri: Uri) -> Failure {
    let message = format!("There is no {method} {} here.", uri.path());
    Failure(ApiError::new(404, "invalid_request_error", Some("unknown_url"), message))
}

pub(crate) async fn no_such_method(method: Method, uri: Uri) -> Failure {
    let message = format!("{} does not take {method}.", uri.path());
    Failure(ApiError::new(405, "invalid_request_error", Some("method_not_allowed"), message))
}
