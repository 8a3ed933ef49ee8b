//! One request to the server under test, timed token by token.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use cortex_core::sse::SseParser;
use http::{Method, Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

const EVENT_BYTES_MAX: usize = 4 << 20;
const ERROR_BYTES_MAX: usize = 64 << 10;

/// A server that speaks OpenAI's dialect over plain HTTP.
#[derive(Clone, Debug)]
pub struct Target {
    chat: Uri,
    key: Option<String>,
    wait_max: Duration,
    http: Client<HttpConnector, Full<Bytes>>,
}

/// How one request went.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// From its planned arrival to the first token: what it waited for its turn counts.
    pub ttft: Duration,
    /// From its planned arrival to the end.
    pub whole: Duration,
    /// Between one event with text and the next.
    pub gaps: Vec<Duration>,
    /// Tokens of the answer: as the server counts them, or else one for each event.
    pub tokens: u64,
}

impl Target {
    /// The server at `url` (`http://host:port`); nothing is sent yet.
    ///
    /// # Errors
    /// An address that is none.
    pub fn new(url: &str, key: Option<String>, wait_max: Duration) -> anyhow::Result<Self> {
        let chat: Uri = format!("{}/v1/chat/completions", url.trim_end_matches('/')).parse().context("--url is not an address")?;
        if chat.scheme_str() != Some("http") {
            bail!("--url must begin with http://");
        }
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Ok(Self { chat, key, wait_max, http: Client::builder(TokioExecutor::new()).build(connector) })
    }

    /// Sends `body` and reads the answer to its end; `arrived` is when the request came.
    ///
    /// # Errors
    /// No connection, a status that is not 2xx, an error event, a stream without `[DONE]`, or too long a wait.
    pub async fn ask(&self, body: &Value, arrived: Instant) -> anyhow::Result<Timing> {
        tokio::time::timeout(self.wait_max, self.timed(body, arrived)).await.context("no answer within --wait-s")?
    }

    async fn timed(&self, body: &Value, arrived: Instant) -> anyhow::Result<Timing> {
        let mut request = Request::new(Full::new(Bytes::from(body.to_string())));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.chat.clone();
        request.headers_mut().insert(header::CONTENT_TYPE, "application/json".parse()?);
        if let Some(key) = &self.key {
            request.headers_mut().insert(header::AUTHORIZATION, format!("Bearer {key}").parse()?);
        }
        let response = self.http.request(request).await.context("no connection")?;
        let status = response.status();
        if !status.is_success() {
            let text = Limited::new(response.into_body(), ERROR_BYTES_MAX)
                .collect()
                .await
                .map(http_body_util::Collected::to_bytes)
                .unwrap_or_default();
            bail!("{status}: {}", String::from_utf8_lossy(&text));
        }
        let (mut body, mut parser) = (response.into_body(), SseParser::new(EVENT_BYTES_MAX));
        let mut seen = Seen::default();
        while let Some(frame) = body.frame().await {
            let data = frame.context("the stream was cut")?.into_data().unwrap_or_default();
            let mut events = Vec::new();
            parser.push(&data, |event| events.push(event.data))?;
            for event in events {
                seen.event(&event, Instant::now())?;
            }
        }
        seen.timing(arrived, Instant::now())
    }
}

/// What a stream has said so far.
#[derive(Debug, Default)]
struct Seen {
    tokens_at: Vec<Instant>,
    counted: Option<u64>,
    done: bool,
}

impl Seen {
    fn event(&mut self, data: &str, now: Instant) -> anyhow::Result<()> {
        if data == "[DONE]" {
            self.done = true;
            return Ok(());
        }
        let chunk: Value = serde_json::from_str(data).context("an event is not JSON")?;
        if let Some(error) = chunk.get("error") {
            bail!("error event: {error}");
        }
        self.counted = chunk["usage"]["completion_tokens"].as_u64().or(self.counted);
        let delta = &chunk["choices"][0]["delta"];
        let says = |field: &str| delta[field].as_str().is_some_and(|text| !text.is_empty());
        if says("content") || says("reasoning_content") || says("reasoning") || delta["tool_calls"].is_array() {
            self.tokens_at.push(now);
        }
        Ok(())
    }

    fn timing(self, arrived: Instant, ended: Instant) -> anyhow::Result<Timing> {
        let first = *self.tokens_at.first().context("the answer has no token")?;
        if !self.done {
            bail!("the stream ended without [DONE]");
        }
        Ok(Timing {
            ttft: first - arrived,
            whole: ended - arrived,
            gaps: self.tokens_at.windows(2).map(|pair| pair[1] - pair[0]).collect(),
            tokens: self.counted.unwrap_or(self.tokens_at.len() as u64),
        })
    }
}
