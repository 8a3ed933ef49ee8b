//! Talking to a gateway: JSON answers, and answers as a stream of events.

use std::collections::VecDeque;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use cortex_core::openai::error::ErrorBody;
use cortex_core::sse::{SseEvent, SseParser};
use cortex_net::{DialWaits, Dialer, Trust};
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{CliError, Result, Status};

const CONNECT_MS_MAX: u64 = 3_000;
/// A whole small answer.
const ANSWER_MS_MAX: u64 = 10_000;
/// Between two pieces of a stream; a cold model may have to be loaded first.
const SILENCE_S_MAX: u64 = 600;
const ANSWER_BYTES_MAX: usize = 16 << 20;
const EVENT_BYTES_MAX: usize = 4 << 20;

/// A gateway at an address.
pub(crate) struct Gateway {
    url: String,
    key: Option<String>,
    http: Client<Dialer, Full<Bytes>>,
}

impl Gateway {
    /// A client of the gateway at `url`, which must show what `trust` believes if it is `https`; nothing is sent yet.
    pub(crate) fn new(url: &str, key: Option<String>, trust: Trust) -> Result<Self> {
        let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let url = url.trim_end_matches('/').to_owned();
        let wrong = |what: &str| {
            CliError::new(format!("`{url}` is not the address of a gateway: {what}"))
                .note("write it as http://HOST:PORT or https://HOST:PORT")
        };
        let uri: Uri = url.parse().map_err(|error| wrong(&format!("{error}")))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(wrong("only http and https are spoken here"));
        }
        if uri.path() != "/" || uri.query().is_some() {
            return Err(wrong("it has a path"));
        }
        let dialer = Dialer::new(Arc::new(ArcSwap::from_pointee(trust)), DialWaits::connecting(Duration::from_millis(CONNECT_MS_MAX)));
        Ok(Self { url, key, http: Client::builder(TokioExecutor::new()).build(dialer) })
    }

    /// The answer of `GET path`, typed and as it came.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<(T, Value)> {
        let whole = async {
            let answer = self.send(Method::GET, path, Bytes::new()).await?;
            self.read(answer).await
        };
        let body =
            tokio::time::timeout(Duration::from_millis(ANSWER_MS_MAX), whole).await.map_err(|_| self.silent(ANSWER_MS_MAX / 1000))??;
        let odd = |error: serde_json::Error| {
            CliError::new(format!("{}{path} does not answer like a cortex gateway: {error}", self.url))
                .note("is something else listening there, or another version of cortex?")
        };
        let raw: Value = serde_json::from_slice(&body).map_err(odd)?;
        Ok((serde_json::from_slice(&body).map_err(odd)?, raw))
    }

    /// The seconds since 1970 that the other side's clock shows, where it tells.
    pub(crate) async fn clock(&self, path: &str) -> Result<Option<String>> {
        let answer = self.send(Method::GET, path, Bytes::new());
        let answer =
            tokio::time::timeout(Duration::from_millis(ANSWER_MS_MAX), answer).await.map_err(|_| self.silent(ANSWER_MS_MAX / 1000))??;
        Ok(answer.headers().get(header::DATE).and_then(|date| Some(date.to_str().ok()?.to_owned())))
    }

    /// The events of `POST path`.
    pub(crate) async fn stream(&self, path: &str, body: &Value) -> Result<Events<'_>> {
        let send = self.send(Method::POST, path, Bytes::from(body.to_string()));
        let answer = tokio::time::timeout(Duration::from_secs(SILENCE_S_MAX), send).await.map_err(|_| self.silent(SILENCE_S_MAX))??;
        Ok(Events { gateway: self, body: answer.into_body(), parser: SseParser::new(EVENT_BYTES_MAX), ready: VecDeque::new() })
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("cortex/", env!("CARGO_PKG_VERSION")));
        let request = match &self.key {
            Some(key) => request.header(header::AUTHORIZATION, format!("Bearer {key}")),
            None => request,
        };
        let request = request.body(Full::new(body)).map_err(|error| CliError::new(format!("cannot ask {}{path}: {error}", self.url)))?;
        let answer = self.http.request(request).await.map_err(|error| self.unreachable(&error))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let (status, retry_after) = (answer.status(), retry_after(&answer));
        let body = self.read(answer).await.unwrap_or_default();
        Err(refused(status, retry_after, &body))
    }

    async fn read(&self, answer: Response<Incoming>) -> Result<Bytes> {
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| self.cut(&*error))
    }

    fn unreachable(&self, error: &(dyn Error + 'static)) -> CliError {
        CliError::new(format!("cannot reach the gateway at {}: {}", self.url, root_cause(error)))
            .note("start one here with `cortex up`, or name another with --gateway URL or CORTEX_GATEWAY")
            .with_status(Status::Unreachable)
    }

    fn cut(&self, error: &(dyn Error + 'static)) -> CliError {
        CliError::new(format!("the answer of {} was cut: {}", self.url, root_cause(error)))
    }

    fn silent(&self, seconds: u64) -> CliError {
        CliError::new(format!("the gateway at {} has not answered for {seconds} s", self.url)).with_status(Status::Unreachable)
    }
}

/// The events of one answer.
pub(crate) struct Events<'a> {
    gateway: &'a Gateway,
    body: Incoming,
    parser: SseParser,
    ready: VecDeque<SseEvent>,
}

impl Events<'_> {
    /// The next event, or `None` at the end. Dropping this value cancels the answer.
    pub(crate) async fn next(&mut self) -> Result<Option<SseEvent>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            let frame = tokio::time::timeout(Duration::from_secs(SILENCE_S_MAX), self.body.frame());
            match frame.await.map_err(|_| self.gateway.silent(SILENCE_S_MAX))? {
                None => return Ok(None),
                Some(Err(error)) => return Err(self.gateway.cut(&error)),
                Some(Ok(frame)) => {
                    let ready = &mut self.ready;
                    let bytes = frame.into_data().unwrap_or_default();
                    self.parser.push(&bytes, |event| ready.push_back(event)).map_err(|error| CliError::new(error.to_string()))?;
                }
            }
        }
    }
}

/// The gateway's own words where it has any.
fn refused(status: StatusCode, retry_after: Option<String>, body: &[u8]) -> CliError {
    let error = match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => CliError::new(body.error.message),
        Err(_) => CliError::new(format!("the gateway answered {status}")).note("is something else than a gateway listening there?"),
    };
    match retry_after {
        Some(seconds) => error.note(format!("try again in {seconds} s")),
        None => error,
    }
}

fn retry_after(answer: &Response<Incoming>) -> Option<String> {
    Some(answer.headers().get(header::RETRY_AFTER)?.to_str().ok()?.to_owned())
}

/// The innermost error: `Connection refused (os error 111)` says more than `client error (Connect)`.
fn root_cause<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_before_anything_is_sent() {
        for good in ["http://127.0.0.1:31313", "https://gateway", "http://gateway.internal/", "beast:31313"] {
            assert!(Gateway::new(good, None, Trust::public()).is_ok(), "{good}");
        }
        for bad in ["ftp://gateway", "http://gateway/v1", "http://", "not an address"] {
            assert!(Gateway::new(bad, None, Trust::public()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_refusal_speaks_in_the_gateways_words() {
        let body = br#"{"error":{"message":"The model `x` does not exist.","type":"invalid_request_error","param":"model","code":"model_not_found"}}"#;
        insta::assert_snapshot!(refused(StatusCode::NOT_FOUND, None, body), @"error: The model `x` does not exist.");
        insta::assert_snapshot!(refused(StatusCode::SERVICE_UNAVAILABLE, Some("3".into()), b"<html>"), @r"
        error: the gateway answered 503 Service Unavailable
          = is something else than a gateway listening there?
          = try again in 3 s
        ");
    }
}
