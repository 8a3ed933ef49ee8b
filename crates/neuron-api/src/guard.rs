//! A node that answers only its gateways.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::header::AUTHORIZATION;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use cortex_core::openai::ApiError;
use subtle::ConstantTimeEq;

use crate::error::Failure;

/// What anybody may ask: whether the node lives.
const OPEN: [&str; 2] = ["/health", "/version"];

/// Lets only those pass that send `authorization: Bearer <token>`.
pub fn guarded(router: Router, token: &str) -> Router {
    let wanted: Arc<[u8]> = format!("Bearer {token}").into_bytes().into();
    router.layer(from_fn(move |request: Request, next: Next| check(Arc::clone(&wanted), request, next)))
}

async fn check(wanted: Arc<[u8]>, request: Request, next: Next) -> Response {
    let given = request.headers().get(AUTHORIZATION).map_or(&[][..], |value| value.as_bytes());
    if OPEN.contains(&request.uri().path()) || bool::from(given.ct_eq(&wanted)) {
        return next.run(request).await;
    }
    let message =
        "This node answers its gateway only: what the gateway's `node_token_file` and the node's `token_file` hold must be the same.";
    Failure(ApiError::new(401, "invalid_request_error", Some("invalid_api_key"), message)).into_response()
}
