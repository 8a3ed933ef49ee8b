//! `x-request-id`: taken from the client or drawn here; on every answer and in the log.

use std::time::Instant;

use axum::extract::Request;
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;
use cortex_core::headers::{REQUEST_ID, is_request_id};

/// The id of the request at hand.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub(crate) String);

pub(crate) async fn attach(mut request: Request, next: Next) -> Response {
    let id = request.headers().get(REQUEST_ID).and_then(accepted).unwrap_or_else(|| uuid::Uuid::new_v4().simple().to_string());
    request.extensions_mut().insert(RequestId(id.clone()));
    let (method, path, started) = (request.method().clone(), request.uri().path().to_owned(), Instant::now());
    let mut response = next.run(request).await;
    let (status, ms) = (response.status().as_u16(), started.elapsed().as_secs_f64() * 1e3);
    tracing::debug!(request_id = %id, %method, path, status, ms, "answered");
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

fn accepted(value: &HeaderValue) -> Option<String> {
    value.to_str().ok().filter(|id| is_request_id(id)).map(str::to_owned)
}
