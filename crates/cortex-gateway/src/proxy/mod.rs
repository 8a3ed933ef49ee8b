//! The leg from the gateway to a node: one attempt at one replica, up to the first byte that is worth showing.

mod body;
mod failure;
mod headers;
mod observer;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use cortex_core::config::Timeouts;
use cortex_core::headers::{USAGE, decode_usage};
use cortex_net::{Dialer, Pool, PooledBody};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt, Limited};
use neuron_api::client::causes;
use tokio::time::{Instant, timeout};

use crate::call::Call;
use crate::fleet::LoadGuard;
use crate::routing::Target;

pub(crate) use body::{ObservedBody, Silence};
pub(crate) use failure::AttemptError;
pub(crate) use headers::{client_headers, is_event_stream};
pub(crate) use observer::{Observer, Outcome, Settled};

/// Longest error answer that is read to judge it.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// An idle connection is kept this long for the next request.
const POOL_IDLE: Duration = Duration::from_secs(60);

/// Connections to all nodes, pooled for each.
#[derive(Debug)]
pub(crate) struct Proxy {
    pool: ArcSwap<Pool>,
    dialer: Dialer,
    first_byte: Duration,
    idle: Duration,
    /// Proves the gateway to its nodes.
    authorization: Option<HeaderValue>,
}

/// A node's answer that has begun.
#[derive(Debug)]
pub(crate) struct Answer {
    head: http::response::Parts,
    /// Frames read to see whether the answer really begins; they come first.
    held: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    body: PooledBody,
    guard: LoadGuard,
    deadline: Instant,
}

impl Proxy {
    pub(crate) fn new(timeouts: &Timeouts, node_token: &str, dialer: Dialer) -> Self {
        let pool = ArcSwap::from_pointee(Pool::new(dialer.clone(), POOL_IDLE));
        let authorization = (!node_token.is_empty()).then(|| format!("Bearer {node_token}").parse().ok()).flatten();
        Self { pool, dialer, first_byte: timeouts.first_byte_ms_max.duration(), idle: timeouts.idle_ms_max.duration(), authorization }
    }

    /// Sends nothing more over the connections that there are; the requests on them go on.
    pub(crate) fn leave_connections(&self) {
        self.pool.store(Arc::new(Pool::new(self.dialer.clone(), POOL_IDLE)));
    }

    /// Sends `call` to `target` and waits until its answer has begun. An error means that nothing was shown and another node may be
    /// tried. Dropping the future, as whoever waits does at the request's deadline, closes the connection, which the node takes for a
    /// cancellation.
    pub(crate) async fn attempt(&self, target: &Target, call: &Call) -> Result<Answer, AttemptError> {
        let guard = target.occupy(call.tokens);
        let late = Err(AttemptError::TimedOut { after: self.first_byte });
        timeout(self.first_byte, self.begin(target, call, guard)).await.unwrap_or(late)
    }

    async fn begin(&self, target: &Target, call: &Call, guard: LoadGuard) -> Result<Answer, AttemptError> {
        let mut request = request(target, call)?;
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        let pool = self.pool.load_full();
        let (head, body) = pool.request(request).await.map_err(|error| AttemptError::of_send(&error))?.into_parts();
        if matches!(head.status.as_u16(), 404 | 429 | 500..) {
            return judge(Answer { head, held: VecDeque::new(), trailers: None, body, guard, deadline: call.deadline }).await;
        }
        let mut answer = Answer { head, held: VecDeque::new(), trailers: None, body, guard, deadline: call.deadline };
        self.first_frame(&mut answer).await?;
        answer.guard.is_admitted();
        Ok(answer)
    }

    /// Reads until there is something worth showing: heartbeats only tell that the node is alive.
    async fn first_frame(&self, answer: &mut Answer) -> Result<(), AttemptError> {
        let streamed = is_event_stream(&answer.head.headers);
        loop {
            let frame = timeout(self.idle, answer.body.frame()).await.map_err(|_| AttemptError::TimedOut { after: self.idle })?;
            let Some(frame) = frame else { return Ok(()) };
            let frame = frame.map_err(|error| AttemptError::Reset { reason: causes(&error) })?;
            match frame.into_data() {
                Ok(data) if streamed && data.starts_with(b"data: {\"error\"") => return Err(AttemptError::DiedEarly { event: data }),
                Ok(data) => {
                    let heartbeat = streamed && data.starts_with(b":");
                    answer.held.push_back(data);
                    if !heartbeat {
                        return Ok(());
                    }
                }
                Err(frame) => answer.trailers = frame.into_trailers().ok(),
            }
        }
    }

    /// The answer on its way to the client, watched by `observer` to its end.
    pub(crate) fn respond(&self, answer: Answer, mut observer: Observer) -> Response {
        let Answer { mut head, held, trailers, body, guard, deadline } = answer;
        let streamed = is_event_stream(&head.headers);
        observer.answers(head.status.as_u16(), streamed);
        for carrier in [Some(&head.headers), trailers.as_ref()].into_iter().flatten() {
            usage_of(carrier).into_iter().for_each(|usage| observer.usage(usage));
        }
        headers::strip_answer(&mut head.headers);
        let silence = Silence::new(self.idle, deadline);
        let body = ObservedBody::new(held, body, streamed, silence, head.status.as_u16(), observer, guard);
        Response::from_parts(head, Body::new(body))
    }
}

fn request(target: &Target, call: &Call) -> Result<Request<Bytes>, AttemptError> {
    let invalid = |error: http::Error| AttemptError::Unreachable { reason: error.to_string() };
    let endpoint = &target.node.endpoint;
    let uri = Uri::builder().scheme(endpoint.scheme()).authority(endpoint.authority()).path_and_query(call.endpoint.node_path());
    let mut request = Request::new(call.body.clone());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri.build().map_err(invalid)?;
    *request.headers_mut() = call.headers.clone();
    Ok(request)
}

/// An error answer: some of them are a reason to go elsewhere, and only their body tells.
async fn judge(answer: Answer) -> Result<Answer, AttemptError> {
    if is_event_stream(&answer.head.headers) {
        return Ok(answer);
    }
    let Answer { head, body, guard: _guard, .. } = answer;
    let whole = Limited::new(body, ERROR_BYTES_MAX).collect().await;
    let whole = whole.map_err(|error| AttemptError::Reset { reason: causes(&*error) })?;
    Err(AttemptError::of_answer(head, whole.to_bytes()))
}

fn usage_of(headers: &HeaderMap) -> Option<cortex_core::Usage> {
    decode_usage(headers.get(USAGE)?.to_str().ok()?)
}
