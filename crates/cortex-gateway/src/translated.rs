//! A node's answer that is translated on its way to the client: read, timed and sent. What it says is decided in `translate`.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http_body_util::{BodyExt, Limited};
use tokio::time::{Instant, timeout_at};

use crate::translate::Translator;

/// Longest answer that is not streamed; the ids of a very long prompt fit in.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Clients give a silent stream up after some tens of seconds.
const PING_MAX: Duration = Duration::from_secs(10);

/// A whole body; `None` when it broke off or is too long.
pub(crate) async fn read(answer: Response) -> Option<Bytes> {
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    body.ok().map(http_body_util::Collected::to_bytes)
}

/// A node's stream as `translator` tells it, with a sign of life each `ping`.
pub(crate) fn stream(answer: Response, translator: impl Translator, ping: Duration) -> Response {
    let ping = ping.min(PING_MAX);
    let translated = Translated { upstream: Some(answer.into_body()), translator, ping, ping_at: Instant::now() + ping };
    let frames = futures::stream::unfold(translated, |mut translated| async move {
        let bytes = translated.next().await?;
        Some((Ok::<_, std::convert::Infallible>(bytes), translated))
    });
    let mut response = Response::new(Body::from_stream(frames));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Dropping it drops the node's answer, which cancels the generation.
struct Translated<T> {
    /// `None` once there is nothing left to read.
    upstream: Option<Body>,
    translator: T,
    ping: Duration,
    ping_at: Instant,
}

impl<T: Translator> Translated<T> {
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
