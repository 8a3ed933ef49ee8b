//! Answers on their way to clients of Anthropic's dialect. What they say is decided in `translate`; here it is read, timed and sent.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use cortex_core::anthropic::error::{ErrorDetail, ErrorKind};
use cortex_core::openai::ApiError;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::{BodyExt, Limited};
use tokio::time::{Instant, timeout_at};

use crate::proxy::is_event_stream;
use crate::translate::{Asked, StreamTranslator, error, response};

/// Longest answer that is not streamed; the ids of a very long prompt fit in.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Clients give a silent stream up after some tens of seconds.
const PING_MAX: Duration = Duration::from_secs(10);

/// What an answer needs to know beside the request.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    pub(crate) request_id: String,
    /// A stream that has nothing to say says so this often.
    pub(crate) ping: Duration,
}

/// The header that clients of this dialect send with everything.
pub(crate) fn is_version_sent(headers: &HeaderMap) -> bool {
    headers.contains_key("anthropic-version")
}

pub(crate) fn is_spoken_in(request: &Request) -> bool {
    request.uri().path().starts_with("/v1/messages") || is_version_sent(request.headers())
}

/// A node's good answer, streamed or whole.
pub(crate) async fn answer(answer: Response, asked: Asked, way: Way) -> Response {
    if is_event_stream(answer.headers()) {
        return stream(answer, StreamTranslator::new(asked, &way.request_id), &way);
    }
    let message = read(answer).await.and_then(|body| response::message(&body, asked, &way.request_id));
    match message {
        Some(message) => sent(Json(message), &way.request_id),
        None => broken(&way.request_id),
    }
}

/// A node's good answer to `/tokenize`.
pub(crate) async fn count(answer: Response, request_id: &str) -> Response {
    match read(answer).await.and_then(|body| response::token_count(&body)) {
        Some(count) => sent(Json(count), request_id),
        None => broken(request_id),
    }
}

/// An error of the gateway or of a node.
pub(crate) async fn error(answer: Response, request_id: &str) -> Response {
    let (status, retry_after) = (answer.status().as_u16(), answer.headers().get(RETRY_AFTER).cloned());
    let body = read(answer).await.unwrap_or_default();
    let (status, detail) = error::of_answer(status, &body);
    let mut response = refused(status, detail, request_id);
    if let Some(retry_after) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, retry_after);
    }
    response
}

/// An error that is known as a value.
pub(crate) fn refusal(error: &ApiError, request_id: &str) -> Response {
    let (status, detail) = error::of_error(error);
    refused(status, detail, request_id)
}

fn broken(request_id: &str) -> Response {
    let message = "the node broke off in the middle of the answer, or its answer cannot be read";
    refused(ErrorKind::Api.status(), ErrorDetail { kind: ErrorKind::Api, message: message.into() }, request_id)
}

fn refused(status: u16, detail: ErrorDetail, request_id: &str) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    sent((status, Json(detail.answer(request_id))), request_id)
}

/// This dialect's name for the request's id goes beside ours.
fn sent(answer: impl IntoResponse, request_id: &str) -> Response {
    let mut response = answer.into_response();
    if let Ok(id) = HeaderValue::from_str(request_id) {
        response.headers_mut().insert("request-id", id);
    }
    response
}

async fn read(answer: Response) -> Option<Bytes> {
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    body.ok().map(http_body_util::Collected::to_bytes)
}

fn stream(answer: Response, translator: StreamTranslator, way: &Way) -> Response {
    let ping = way.ping.min(PING_MAX);
    let translated = Translated { upstream: Some(answer.into_body()), translator, ping, ping_at: Instant::now() + ping };
    let frames = futures::stream::unfold(translated, |mut translated| async move {
        let bytes = translated.next().await?;
        Some((Ok::<_, std::convert::Infallible>(bytes), translated))
    });
    let mut response = sent(Body::from_stream(frames), &way.request_id);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Dropping it drops the node's answer, which cancels the generation.
struct Translated {
    /// `None` once there is nothing left to read.
    upstream: Option<Body>,
    translator: StreamTranslator,
    ping: Duration,
    ping_at: Instant,
}

impl Translated {
    /// The next bytes for the client. The node's answer is read to its very end, where its usage stands.
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = BytesMut::new();
        while out.is_empty() {
            let upstream = self.upstream.as_mut()?;
            match timeout_at(self.ping_at, upstream.frame()).await {
                Err(_) => {
                    self.ping_at = Instant::now() + self.ping;
                    self.translator.ping(&mut out);
                }
                Ok(Some(Ok(frame))) => {
                    let data = frame.into_data().unwrap_or_default();
                    self.translator.push(&data, &mut out);
                }
                Ok(Some(Err(error))) => {
                    self.upstream = None;
                    self.translator.cut(&error.to_string(), &mut out);
                }
                Ok(None) => {
                    self.upstream = None;
                    self.translator.end(&mut out);
                }
            }
        }
        self.ping_at = Instant::now() + self.ping;
        Some(out.freeze())
    }
}
