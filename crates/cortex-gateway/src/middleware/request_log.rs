//! `x-request-id`: taken from the client or drawn here; on every answer, towards the node and in every log line.

use axum::extract::Request;
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;
use cortex_core::headers::{REQUEST_ID, is_request_id};
use tracing::Instrument;

/// The id of the request at hand.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub(crate) String);

impl RequestId {
    pub(crate) fn of(request: &Request) -> String {
        request.extensions().get::<Self>().map(|id| id.0.clone()).unwrap_or_default()
    }
}

pub(crate) async fn attach(mut request: Request, next: Next) -> Response {
    let id = request.headers().get(REQUEST_ID).and_then(accepted).unwrap_or_else(|| uuid::Uuid::new_v4().simple().to_string());
    let span = tracing::debug_span!("http", request_id = %id, method = %request.method(), path = %request.uri().path());
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = next.run(request).instrument(span.clone()).await;
    span.in_scope(|| tracing::debug!(status = response.status().as_u16(), "answered"));
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

fn accepted(value: &HeaderValue) -> Option<String> {
    value.to_str().ok().filter(|id| is_request_id(id)).map(str::to_owned)
}
