//! Why one attempt failed, and what the client reads if no other attempt succeeds.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use cortex_core::openai::ApiError;
use cortex_core::openai::error::ErrorBody;
use cortex_net::SendError;
use http::header::RETRY_AFTER;
use http::response::Parts;

use super::headers::strip_answer;
use crate::error::Refusal;

/// One attempt that came to nothing before anything was shown.
#[derive(Debug)]
pub(crate) enum AttemptError {
    /// Nobody listens there.
    Unreachable { reason: String },
    /// The connection broke before the answer began.
    Reset { reason: String },
    /// Nothing came for too long.
    TimedOut { after: Duration },
    /// The node does not have the model in memory; our picture of it was old.
    NotLoaded(Whole),
    /// The node takes nothing new.
    Draining(Whole),
    /// The node has no place free.
    Busy(Whole),
    /// The generation failed before its first token.
    DiedEarly { event: Bytes },
    /// The node answered with an error of its own (5xx).
    Errored(Whole),
    /// The request is at fault: no other node would answer differently.
    Refused(Whole),
}

/// An error answer, read to its end.
#[derive(Debug)]
pub(crate) struct Whole {
    head: Box<Parts>,
    body: Bytes,
}

impl AttemptError {
    pub(super) fn of_send(error: &SendError) -> Self {
        let reason = neuron_api::client::causes(error);
        match error {
            SendError::Connect(_) => Self::Unreachable { reason },
            SendError::Broken(_) => Self::Reset { reason },
        }
    }

    pub(super) fn of_answer(head: Parts, body: Bytes) -> Self {
        let code = serde_json::from_slice::<ErrorBody>(&body).ok().and_then(|body| body.error.code);
        let status = head.status.as_u16();
        let whole = Whole { head: Box::new(head), body };
        match (status, code.as_deref()) {
            (_, Some("model_not_loaded")) | (404, Some("model_not_found")) => Self::NotLoaded(whole),
            (503, Some("shutting_down")) => Self::Draining(whole),
            (429 | 503, _) => Self::Busy(whole),
            (500.., _) => Self::Errored(whole),
            _ => Self::Refused(whole),
        }
    }

    /// When the node said it is worth coming back.
    pub(crate) fn retry_after_s(&self) -> Option<u64> {
        match self {
            Self::Busy(whole) => whole.head.headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok(),
            _ => None,
        }
    }

    /// The node worked on the request and failed, or may have: sending the request to many nodes could fail them all.
    pub(crate) fn may_be_deadly(&self) -> bool {
        matches!(self, Self::Reset { .. } | Self::DiedEarly { .. })
    }

    /// The node did no work on it, so that sending the request elsewhere adds none.
    pub(crate) fn is_free(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::NotLoaded(_) | Self::Draining(_) | Self::Reset { .. })
    }

    /// It speaks against the node, not against the request or the moment.
    pub(crate) fn blames_node(&self) -> bool {
        matches!(self, Self::Reset { .. } | Self::TimedOut { .. } | Self::DiedEarly { .. } | Self::Errored(_))
    }

    /// The word in metrics and logs.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Reset { .. } => "reset",
            Self::TimedOut { .. } => "timed_out",
            Self::NotLoaded(_) => "not_loaded",
            Self::Draining(_) => "draining",
            Self::Busy(_) => "busy",
            Self::DiedEarly { .. } => "died_early",
            Self::Errored(_) => "errored",
            Self::Refused(_) => "refused",
        }
    }

    /// What the client reads. A node's own words are passed on as they are.
    pub(crate) fn into_response(self, node: &str) -> Response {
        let server_error = |status, code, message: String| ApiError::new(status, "server_error", Some(code), message);
        let error = match self {
            Self::Unreachable { reason } => {
                server_error(503, "node_unreachable", format!("the node `{node}` cannot be reached: {reason}")).with_retry_after(1)
            }
            Self::Reset { reason } => {
                server_error(502, "node_failed", format!("the node `{node}` broke off: {reason}")).with_retry_after(1)
            }
            Self::TimedOut { after } => server_error(504, "node_timed_out", format!("the node `{node}` said nothing for {after:?}")),
            Self::DiedEarly { event } => died_early(node, &event),
            Self::NotLoaded(whole) | Self::Draining(whole) | Self::Busy(whole) | Self::Errored(whole) | Self::Refused(whole) => {
                return whole.into_response();
            }
        };
        Refusal(error).into_response()
    }
}

impl Whole {
    fn into_response(self) -> Response {
        let Self { mut head, body } = self;
        strip_answer(&mut head.headers);
        Response::from_parts(*head, Body::from(body))
    }
}

/// The event's own error, now that a status can still go with it.
fn died_early(node: &str, event: &[u8]) -> ApiError {
    let data = event.strip_prefix(b"data: ").unwrap_or(event);
    let body = serde_json::Deserializer::from_slice(data).into_iter::<ErrorBody>().next().and_then(Result::ok);
    let error = ApiError::new(500, "server_error", Some("node_failed"), format!("the node `{node}` failed before the first token"));
    match body {
        Some(body) => ApiError { body, ..error },
        None => error,
    }
}
