//! A typed client for a node (and for the chat endpoint of a gateway, which speaks the same).

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use cortex_core::openai::{ApiError, ChatChunk, ErrorBody};
use cortex_core::sse::SseParser;
use cortex_core::{Discovery, Health, ModelReport, ModelSpec, UnloadRequest};
use cortex_net::Dialer;
use futures::Stream;
use http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as Pool;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{ModelsAnswer, UnloadAnswer};

const ANSWER_BYTES_MAX: usize = 16 << 20;
const EVENT_BYTES_MAX: usize = 4 << 20;

/// How long a client waits.
#[derive(Clone, Copy, Debug)]
pub struct ClientTimeouts {
    /// For a connection.
    pub connect: Duration,
    /// For the whole answer of a call that only reads.
    pub call: Duration,
    /// For the whole answer of a load or unload.
    pub action: Duration,
    /// For the next byte of a stream; a live node sends one each second.
    pub idle: Duration,
}

impl Default for ClientTimeouts {
    /// 2 s, 10 s, 1 h and 30 s.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { connect: seconds(2), call: seconds(10), action: seconds(3600), idle: seconds(30) }
    }
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ClientError {
    /// Nobody answered: refused, unresolved, cut, or too slow.
    #[error("{endpoint} cannot be reached: {reason}")]
    Unreachable {
        /// Whom we called.
        endpoint: String,
        /// What happened.
        reason: String,
    },
    /// The other side answered with an error; an error inside a stream has the status 500.
    #[error("{}", .0.body.error.message)]
    Status(ApiError),
    /// The answer is not what it should be.
    #[error("{endpoint} gave an answer that is not understood: {reason}")]
    Protocol {
        /// Whom we called.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Pooled connections to one node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    endpoint: String,
    bearer: Option<HeaderValue>,
    timeouts: ClientTimeouts,
    pool: Pool<Dialer, Full<Bytes>>,
}

impl Client {
    /// A client for `endpoint` (`http://host:port`, or `https` with a certificate of a public authority); nothing is connected yet.
    pub fn new(endpoint: &str, timeouts: ClientTimeouts) -> Self {
        Self::over(endpoint, timeouts, Dialer::public(timeouts.connect))
    }

    /// A client whose connections `dialer` opens.
    pub fn over(endpoint: &str, timeouts: ClientTimeouts, dialer: Dialer) -> Self {
        let pool = Pool::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(dialer);
        Self { endpoint: endpoint.trim_end_matches('/').to_owned(), bearer: None, timeouts, pool }
    }

    /// Sends `authorization: Bearer <key>` with each call. A key that is no header value is left out.
    pub fn with_bearer(mut self, key: &str) -> Self {
        self.bearer = format!("Bearer {key}").parse().ok();
        self
    }

    /// Whom this client calls.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// `GET /discovery`.
    pub async fn discovery(&self) -> Result<Discovery, ClientError> {
        self.get("/discovery").await
    }

    /// `GET /health`.
    pub async fn health(&self) -> Result<Health, ClientError> {
        self.get("/health").await
    }

    /// `GET /models`.
    pub async fn models(&self) -> Result<Vec<ModelReport>, ClientError> {
        Ok(self.get::<ModelsAnswer>("/models").await?.models)
    }

    /// `POST /models/load`; answers when the model serves.
    pub async fn load(&self, spec: &ModelSpec) -> Result<ModelReport, ClientError> {
        self.whole(Method::POST, "/models/load", json(spec), self.timeouts.action).await
    }

    /// `POST /models/unload`; answers when the memory is back.
    pub async fn unload(&self, request: &UnloadRequest) -> Result<(), ClientError> {
        self.whole::<UnloadAnswer>(Method::POST, "/models/unload", json(request), self.timeouts.action).await.map(|_| ())
    }

    /// `GET` of any JSON.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.whole(Method::GET, path, Bytes::new(), self.timeouts.call).await
    }

    /// `POST` of any JSON, answered within the timeout for actions.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.whole(Method::POST, path, json(body), self.timeouts.action).await
    }

    /// `POST /v1/chat/completions` with `"stream": true` in `request`. Answers when the stream starts; dropping it cancels.
    pub async fn chat(&self, request: &serde_json::Value) -> Result<ChatStream, ClientError> {
        let response = self.send(Method::POST, "/v1/chat/completions", json(request), self.timeouts.action).await?;
        Ok(ChatStream {
            client: self.clone(),
            body: response.into_body(),
            parser: SseParser::new(EVENT_BYTES_MAX),
            ready: VecDeque::new(),
            over: false,
        })
    }

    async fn whole<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes, wait_max: Duration) -> Result<T, ClientError> {
        let answer = async {
            let response = self.send(method, path, body, wait_max).await?;
            self.read(response).await
        };
        let bytes = tokio::time::timeout(wait_max, answer).await.unwrap_or_else(|_| Err(self.too_slow(wait_max)))?;
        serde_json::from_slice(&bytes).map_err(|error| self.protocol(error.to_string()))
    }

    /// The head of a good answer; a bad one becomes an error with its body read.
    async fn send(&self, method: Method, path: &str, body: Bytes, wait_max: Duration) -> Result<Response<Incoming>, ClientError> {
        let uri = Uri::try_from(format!("{}{path}", self.endpoint)).map_err(|error| self.unreachable(error.to_string()))?;
        let mut request = Request::builder().method(method).uri(uri).header(CONTENT_TYPE, "application/json");
        if let Some(bearer) = &self.bearer {
            request = request.header(AUTHORIZATION, bearer);
        }
        let request = request.body(Full::new(body)).map_err(|error| self.unreachable(error.to_string()))?;
        let response = tokio::time::timeout(wait_max, self.pool.request(request)).await;
        let response = response.map_err(|_| self.too_slow(wait_max))?.map_err(|error| self.unreachable(causes(&error)))?;
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(response).await) }
    }

    async fn refusal(&self, response: Response<Incoming>) -> ClientError {
        let status = response.status();
        let retry_after_s = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let bytes = match tokio::time::timeout(self.timeouts.call, self.read(response)).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => return error,
            Err(_) => return self.too_slow(self.timeouts.call),
        };
        let error = match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(body) => ApiError { status: status.as_u16(), body, retry_after_s },
            Err(_) => ApiError::new(status.as_u16(), "server_error", None, format!("{} answered {status}", self.endpoint)),
        };
        ClientError::Status(ApiError { retry_after_s, ..error })
    }

    async fn read(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        match Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) => Err(self.unreachable(causes(&*error))),
        }
    }

    fn unreachable(&self, reason: impl Into<String>) -> ClientError {
        ClientError::Unreachable { endpoint: self.endpoint.clone(), reason: reason.into() }
    }

    fn too_slow(&self, wait_max: Duration) -> ClientError {
        self.unreachable(format!("no answer within {wait_max:?}"))
    }

    fn protocol(&self, reason: impl Into<String>) -> ClientError {
        ClientError::Protocol { endpoint: self.endpoint.clone(), reason: reason.into() }
    }
}

fn json(body: &impl Serialize) -> Bytes {
    serde_json::to_vec(body).expect("requests are maps with string keys").into()
}

/// An error with all its causes: hyper's own message stops before the interesting part ("client error (Connect)").
pub fn causes(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The chunks of a chat answer. A stream that ends without `[DONE]` was cut, and says so.
#[derive(Debug)]
pub struct ChatStream {
    client: Client,
    body: Incoming,
    parser: SseParser,
    ready: VecDeque<Result<ChatChunk, ClientError>>,
    over: bool,
}

impl ChatStream {
    /// The next chunk; `None` after `[DONE]` or after an error.
    pub async fn next_chunk(&mut self) -> Option<Result<ChatChunk, ClientError>> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Some(chunk);
            }
            if self.over {
                return None;
            }
            self.read_more().await;
        }
    }

    /// As a [`Stream`].
    pub fn into_stream(self) -> impl Stream<Item = Result<ChatChunk, ClientError>> {
        futures::stream::unfold(self, |mut stream| async move { Some((stream.next_chunk().await?, stream)) })
    }

    async fn read_more(&mut self) {
        let idle = self.client.timeouts.idle;
        match tokio::time::timeout(idle, self.body.frame()).await {
            Ok(Some(Ok(frame))) => self.parse(frame.data_ref().map_or(&[][..], |data| data)),
            Ok(Some(Err(error))) => self.end(Some(self.client.unreachable(causes(&error)))),
            Ok(None) => self.end(Some(self.client.unreachable("the answer was cut before its end"))),
            Err(_) => self.end(Some(self.client.unreachable(format!("nothing came for {idle:?}")))),
        }
    }

    fn parse(&mut self, bytes: &[u8]) {
        let mut events = Vec::new();
        let parsed = self.parser.push(bytes, |event| events.push(event.data));
        for data in events {
            match self.chunk(&data) {
                _ if self.over => return,
                _ if data == "[DONE]" => self.end(None),
                Ok(chunk) => self.ready.push_back(Ok(chunk)),
                Err(error) => self.end(Some(error)),
            }
        }
        if let Err(error) = parsed {
            self.end(Some(self.client.protocol(error.to_string())));
        }
    }

    fn chunk(&self, data: &str) -> Result<ChatChunk, ClientError> {
        serde_json::from_str(data).map_err(|error| match serde_json::from_str::<ErrorBody>(data) {
            Ok(body) => ClientError::Status(ApiError { status: 500, body, retry_after_s: None }),
            Err(_) => self.client.protocol(error.to_string()),
        })
    }

    fn end(&mut self, error: Option<ClientError>) {
        self.ready.extend(error.map(Err));
        self.over = true;
    }
}
