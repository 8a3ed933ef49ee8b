//! The table of contents: every path the gateway answers.

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};

use crate::app::App;
use crate::controllers::{admin, chat, completions, embeddings, health, messages, models, rerank, responses};
use crate::error::{no_such_method, no_such_route};
use crate::front::Front;

/// For clients and operators.
pub(crate) fn api(app: Arc<App>) -> Front {
    let routes = Router::new()
        .route("/", get(health::root))
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/embeddings", post(embeddings::create))
        .route("/v1/rerank", post(rerank::create))
        .route("/v1/responses", post(responses::create))
        .route("/v1/messages", post(messages::create))
        .route("/v1/messages/count_tokens", post(messages::count_tokens))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::entry)) // ids may hold slashes
        .route("/health", get(health::health))
        .route("/live", get(health::live))
        .route("/ready", get(health::ready))
        .route("/version", get(health::version))
        .route("/admin/fleet", get(admin::fleet))
        .route("/admin/plan", get(admin::plan))
        .route("/admin/nodes/{name}/drain", post(admin::drain))
        .route("/admin/nodes/{name}/undrain", post(admin::undrain))
        .route("/admin/models/load", post(admin::load))
        .route("/admin/models/unload", post(admin::unload))
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .with_state(Arc::clone(&app));
    Front::new(app, routes)
}

/// For Prometheus.
pub(crate) fn metrics(app: Arc<App>) -> Router {
    Router::new().route("/metrics", get(health::metrics)).fallback(no_such_route).with_state(app)
}
