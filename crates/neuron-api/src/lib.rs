//! neuron's HTTP face over any [`Harness`], its typed client, and the mock neuron that implements the same trait.
//!
//! [`router`] is the table of contents.

mod call;
mod chat;
pub mod client;
mod completions;
mod dialect;
mod embeddings;
mod error;
mod guard;
mod models;
mod node;
mod project;
mod request_id;
mod rerank;
mod stream;
mod tokenize;

pub mod mock;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::routing::{get, post};
use cortex_core::Harness;

pub use client::{ChatStream, Client, ClientError, ClientTimeouts};
pub use error::Failure;
pub use guard::guarded;
pub use models::{EndpointAnswer, ModelsAnswer, UnloadAnswer};
pub use node::VersionAnswer;
pub use tokenize::{DetokenizeAnswer, TokenizeAnswer};

/// What one request may cost.
#[derive(Clone, Copy, Debug)]
pub struct ApiLimits {
    /// Longest body in bytes; above it the answer is 413.
    pub body_bytes_max: usize,
    /// Longest wait for the whole body; after it the answer is 408.
    pub body_wait_max: Duration,
}

impl Default for ApiLimits {
    /// 64 MiB (a few pictures as base64) and 60 s.
    fn default() -> Self {
        Self { body_bytes_max: 64 << 20, body_wait_max: Duration::from_secs(60) }
    }
}

/// What every handler knows.
#[derive(Clone)]
struct Api {
    harness: Arc<dyn Harness>,
    limits: ApiLimits,
    /// Seconds since 1970 when the router was made: `created` of the models.
    started: u64,
}

/// All routes of a node, save `/metrics`, which the daemon adds.
pub fn router(harness: Arc<dyn Harness>, limits: ApiLimits) -> Router {
    Router::new()
        .route("/discovery", get(node::discovery))
        .route("/health", get(node::health))
        .route("/version", get(node::version))
        .route("/models", get(models::reports))
        .route("/models/load", post(models::load))
        .route("/models/unload", post(models::unload))
        .route("/models/{*path}", get(models::endpoint)) // `{id}/endpoint`, where the id may hold slashes
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::entry))
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/embeddings", post(embeddings::create))
        .route("/v1/rerank", post(rerank::create))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .fallback(error::no_such_route)
        .method_not_allowed_fallback(error::no_such_method)
        .with_state(Api { harness, limits, started: unix_seconds() })
        .layer(axum::middleware::from_fn(request_id::attach))
}

#[expect(clippy::disallowed_methods, reason = "clients are shown the time of day")]
fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
