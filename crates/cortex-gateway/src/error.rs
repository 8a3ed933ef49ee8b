//! Errors as HTTP answers, in OpenAI's shape whatever the route.

use axum::Json;
use axum::http::header::RETRY_AFTER;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use cortex_core::openai::ApiError;

/// An [`ApiError`] on its way to the client.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) ApiError);

impl<E: Into<ApiError>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.0.body)).into_response();
        if let Some(seconds) = self.0.retry_after_s {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

pub(crate) async fn no_such_route(method: Method, uri: Uri) -> Refusal {
    let message =
        format!("There is no {method} {} here. Clients use /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models.", uri.path());
    Refusal(ApiError::new(404, "invalid_request_error", Some("not_found"), message))
}

pub(crate) async fn no_such_method(method: Method, uri: Uri) -> Refusal {
    let message = format!("{} does not take {method}.", uri.path());
    Refusal(ApiError::new(405, "invalid_request_error", Some("method_not_allowed"), message))
}
