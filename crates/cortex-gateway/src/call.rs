//! One inference request, read and understood as far as the gateway needs to.

use std::sync::Arc;

use axum::extract::Request;
use bytes::Bytes;
use cortex_core::ModelId;
use cortex_core::config::Priority;
use cortex_core::openai::ApiError;
use http::HeaderMap;
use http_body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use crate::app::App;
use crate::keys::Principal;
use crate::middleware::auth::Asker;
use crate::proxy;
use crate::scan::{Scan, scan};

/// What clients can ask a model for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Chat,
    Completions,
    Embeddings,
    Rerank,
    Responses,
    Messages,
    CountTokens,
}

impl Endpoint {
    /// The gateway's path.
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
            Self::Rerank => "/v1/rerank",
            Self::Responses => "/v1/responses",
            Self::Messages => "/v1/messages",
            Self::CountTokens => "/v1/messages/count_tokens",
        }
    }

    /// The node's path.
    pub(crate) const fn node_path(self) -> &'static str {
        match self {
            Self::Chat | Self::Responses | Self::Messages => "/v1/chat/completions",
            Self::CountTokens => "/tokenize",
            Self::Completions | Self::Embeddings | Self::Rerank => self.path(),
        }
    }

    const fn can_stream(self) -> bool {
        matches!(self, Self::Chat | Self::Completions | Self::Responses | Self::Messages)
    }
}

/// A request on its way.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) endpoint: Endpoint,
    /// The model itself; an alias is resolved.
    pub(crate) model: ModelId,
    pub(crate) stream: bool,
    /// As the client sent it, save for an alias, or translated.
    pub(crate) body: Bytes,
    /// What the node gets to see.
    pub(crate) headers: HeaderMap,
    /// Requests with the same one are best sent to the same node.
    pub(crate) affinity: Option<u64>,
    /// A guess of the work.
    pub(crate) tokens: u64,
    pub(crate) priority: Priority,
    /// When the whole answer must have been sent.
    pub(crate) deadline: Instant,
    /// Who asks; absent where no keys are configured.
    pub(crate) asker: Option<Arc<Principal>>,
    /// The body before any model's name was put into it, and where that name stands.
    source: (Bytes, Scan),
}

/// Names a conversation; from the clients that send it.
const SESSION: &str = "x-claude-code-session-id";

impl Call {
    /// Reads the request within the limits of size and time; `translate` makes of its body what a node reads.
    ///
    /// # Errors
    /// 400, 403, 408 or 413, each with what is wrong.
    pub(crate) async fn read(
        app: &App,
        endpoint: Endpoint,
        request: Request,
        request_id: &str,
        translate: impl FnOnce(Bytes) -> Result<Bytes, ApiError>,
    ) -> Result<Self, ApiError> {
        let deadline = Instant::now() + app.config.timeouts.total_ms_max.duration();
        let headers = proxy::client_headers(request.headers(), request_id);
        let asker = Asker::of(&request);
        let session = request.headers().get(SESSION).map(|session| xxh3_64(session.as_bytes()));
        let body = translate(read_body(app, request).await?)?;
        let seen: Scan = scan(&body)?;
        let fleet = app.fleet.load();
        let (model, sent) = match fleet.placement().alias_target(seen.model.as_str()) {
            Some(target) => (target.clone(), seen.splice(&body, target)),
            None => (seen.model.clone(), body.clone()),
        };
        if let Some(asker) = &asker {
            asker.may_use(&model, seen.model.as_str())?;
        }
        let usual = asker.as_ref().map_or(Priority::Normal, |asker| asker.priority);
        Ok(Self {
            endpoint,
            model,
            stream: seen.stream && endpoint.can_stream(),
            body: sent,
            headers,
            affinity: session.or(seen.affinity),
            tokens: seen.tokens,
            priority: if seen.patient { Priority::Low } else { usual },
            deadline,
            asker,
            source: (body, seen),
        })
    }

    /// The same for another model.
    pub(crate) fn asking(&self, model: &ModelId) -> Self {
        let (body, seen) = &self.source;
        Self { model: model.clone(), body: seen.splice(body, model), ..self.clone() }
    }
}

async fn read_body(app: &App, request: Request) -> Result<Bytes, ApiError> {
    let bytes_max = app.config.limits.body_bytes_max.get();
    let wait_max = app.config.timeouts.body_ms_max.duration();
    let too_large = || {
        let message = format!("The body is larger than {bytes_max} bytes (body_bytes_max).");
        ApiError::new(413, "invalid_request_error", Some("request_too_large"), message)
    };
    if request.body().size_hint().lower() > bytes_max as u64 {
        return Err(too_large());
    }
    let reading = Limited::new(request.into_body(), bytes_max).collect();
    match tokio::time::timeout(wait_max, reading).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(ApiError::invalid(format!("The body could not be read: {error}."))),
        Err(_) => {
            let message = format!("The body did not come within {wait_max:?} (body_ms_max).");
            Err(ApiError::new(408, "invalid_request_error", Some("request_timeout"), message))
        }
    }
}
