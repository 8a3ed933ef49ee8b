//! A stream that has to wait, for a load or for a long prefill, shows that it is alive.

use std::pin::Pin;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use cortex_core::openai::ApiError;
use cortex_core::openai::error::ErrorBody;
use cortex_core::sse;
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http_body_util::BodyExt;
use tokio::time::timeout;

use crate::proxy::is_event_stream;

const ERROR_BYTES_MAX: usize = 64 << 10;

/// The answer itself when it begins within `interval`, with its own status. Otherwise the head of a stream, then a comment at each
/// `interval`, then the answer's events; an error becomes an event, because the status is gone by then.
pub(crate) async fn while_waiting(interval: Duration, answer: impl Future<Output = Response> + Send + 'static) -> Response {
    let mut answer: Answer = Box::pin(answer);
    match timeout(interval, &mut answer).await {
        Ok(response) => response,
        Err(_) => stream(interval, answer),
    }
}

type Answer = Pin<Box<dyn Future<Output = Response> + Send>>;

enum Stage {
    /// The first comment goes out with the head.
    Opening(Answer),
    Waiting(Answer),
    Passing(Body),
    Over,
}

fn stream(interval: Duration, answer: Answer) -> Response {
    let frames = futures::stream::unfold(Stage::Opening(answer), move |stage| next(interval, stage));
    let mut response = Response::new(Body::from_stream(frames));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

async fn next(interval: Duration, mut stage: Stage) -> Option<(Result<Bytes, axum::Error>, Stage)> {
    loop {
        stage = match stage {
            Stage::Opening(answer) => return Some((Ok(sse::PING), Stage::Waiting(answer))),
            Stage::Waiting(mut answer) => match timeout(interval, &mut answer).await {
                Err(_) => return Some((Ok(sse::PING), Stage::Waiting(answer))),
                Ok(response) if is_event_stream(response.headers()) => Stage::Passing(response.into_body()),
                Ok(response) => return Some((Ok(error_event(response).await), Stage::Over)),
            },
            Stage::Passing(mut body) => match body.frame().await? {
                Ok(frame) => match frame.into_data() {
                    Ok(data) => return Some((Ok(data), Stage::Passing(body))),
                    Err(_) => Stage::Passing(body),
                },
                Err(error) => return Some((Err(error), Stage::Over)),
            },
            Stage::Over => return None,
        };
    }
}

/// The error's own JSON, as an event.
async fn error_event(response: Response) -> Bytes {
    let status = response.status();
    let body = to_bytes(response.into_body(), ERROR_BYTES_MAX).await.unwrap_or_default();
    let mut event = BytesMut::new();
    match serde_json::from_slice::<ErrorBody>(&body) {
        Ok(body) => sse::write_data(&mut event, &body),
        Err(_) => {
            sse::write_data(&mut event, &ApiError::new(status.as_u16(), "server_error", None, format!("the answer was {status}")).body);
        }
    }
    event.freeze()
}
