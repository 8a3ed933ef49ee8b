//! A generation as server-sent events: chunks, heartbeats while there are none, `[DONE]`, and the usage as a trailer.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, TRAILER};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use cortex_core::openai::ApiError;
use cortex_core::{HarnessError, headers, sse};
use futures::Stream;
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::time::{Instant, timeout_at};

use crate::dialect::Dialect;
use crate::project::Generation;

/// A silent stream says so this often: the gateway tells a long prefill from a dead node by it.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(1);

struct Streaming<D: Dialect> {
    generation: Generation<D>,
    stage: Stage,
    heartbeat_at: Instant,
    include_usage: bool,
    trailers: bool,
}

enum Stage {
    Chunks,
    Trailers,
    End,
}

/// The answer's head is sent at once; its body follows the generation.
pub(crate) fn respond<D: Dialect>(generation: Generation<D>, include_usage: bool, trailers: bool) -> Response {
    let heartbeat_at = Instant::now() + HEARTBEAT;
    let streaming = Streaming { generation, stage: Stage::Chunks, heartbeat_at, include_usage, trailers };
    let mut response = Response::new(Body::new(StreamBody::new(frames(streaming))));
    let head = response.headers_mut();
    head.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    head.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if trailers {
        head.insert(TRAILER, HeaderValue::from_static(headers::USAGE));
    }
    response
}

/// Dropping the stream drops the generation, which cancels it.
fn frames<D: Dialect>(streaming: Streaming<D>) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> {
    futures::stream::unfold(streaming, |mut streaming| async move {
        let frame = streaming.next_frame().await?;
        streaming.heartbeat_at = Instant::now() + HEARTBEAT;
        Some((Ok(frame), streaming))
    })
}

impl<D: Dialect> Streaming<D> {
    async fn next_frame(&mut self) -> Option<Frame<Bytes>> {
        match self.stage {
            Stage::Chunks => Some(Frame::data(self.next_data().await)),
            Stage::Trailers => {
                self.stage = Stage::End;
                Some(Frame::trailers(self.trailing_headers()))
            }
            Stage::End => None,
        }
    }

    async fn next_data(&mut self) -> Bytes {
        loop {
            match timeout_at(self.heartbeat_at, self.generation.next()).await {
                Err(_) => return sse::PING,
                Ok(Some(Ok(chunks))) if chunks.is_empty() => {}
                Ok(Some(Ok(chunks))) => return events(&chunks),
                Ok(Some(Err(error))) => return self.fail(error),
                Ok(None) => return self.done(),
            }
        }
    }

    /// An error after the head went out is an event of its own, and no `[DONE]` follows.
    fn fail(&mut self, error: HarnessError) -> Bytes {
        self.stage = Stage::End;
        events(&[ApiError::from(error).body])
    }

    fn done(&mut self) -> Bytes {
        self.stage = if self.trailers { Stage::Trailers } else { Stage::End };
        if !self.include_usage {
            return sse::DONE;
        }
        let mut bytes = BytesMut::from(&events(&[self.generation.usage_chunk()])[..]);
        bytes.extend_from_slice(&sse::DONE);
        bytes.freeze()
    }

    fn trailing_headers(&self) -> HeaderMap {
        let usage = headers::encode_usage(&self.generation.usage());
        usage.parse().map(|value| HeaderMap::from_iter([(http::HeaderName::from_static(headers::USAGE), value)])).unwrap_or_default()
    }
}

fn events(chunks: &[impl serde::Serialize]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(256 * chunks.len());
    chunks.iter().for_each(|chunk| sse::write_data(&mut bytes, chunk));
    bytes.freeze()
}
