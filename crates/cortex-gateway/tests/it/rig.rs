//! A gateway in front of mock nodes, all over real sockets on free ports, and a small client.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use bytes::Bytes;
use cortex_core::config::{Endpoint, GatewayConfig, Millis, NeuronEntry};
use cortex_core::{NodeState, Placement};
use cortex_gateway::{Gateway, RunningGateway};
use http::header::AUTHORIZATION;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use neuron_api::ApiLimits;
use neuron_api::mock::{MockConfig, MockModel, MockNeuron, MockServer};
use serde_json::{Value, json};
use tokio::sync::Notify;

/// Longer than anything takes on the slowest machine; reached only by a test that fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// Nodes with names `a`, `b`, … and a gateway that knows them.
pub(crate) struct Rig {
    pub(crate) gateway: RunningGateway,
    pub(crate) nodes: Vec<MockServer>,
}

impl Rig {
    /// A node for each list of models.
    pub(crate) async fn start(models: impl IntoIterator<Item = Vec<MockModel>>) -> Self {
        Self::with(models, |_| {}).await
    }

    /// The same, with another configuration.
    pub(crate) async fn with(models: impl IntoIterator<Item = Vec<MockModel>>, change: impl FnOnce(&mut GatewayConfig)) -> Self {
        let mut nodes = Vec::new();
        for models in models {
            nodes.push(MockNeuron::new(MockConfig::new(models)).serve().await.unwrap());
        }
        let mut config = config(nodes.iter().map(|node| node.addr));
        change(&mut config);
        Self { gateway: Gateway::start(config).await.unwrap(), nodes }
    }

    pub(crate) fn mock(&self, node: usize) -> &MockNeuron {
        &self.nodes[node].mock
    }

    pub(crate) fn client(&self) -> TestClient {
        TestClient::new(self.gateway.addr)
    }

    pub(crate) async fn metrics(&self) -> String {
        TestClient::new(self.gateway.metrics_addr).get("/metrics").await.text()
    }

    /// The value of one line of the metrics text.
    pub(crate) async fn metric(&self, line: &str) -> Option<f64> {
        let text = self.metrics().await;
        text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok())
    }

    pub(crate) fn state(&self, node: usize) -> NodeState {
        self.gateway.fleet().nodes[node].state.clone()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.gateway.fleet().gateway.requests_in_flight
    }
}

/// Free ports, nodes named by letters, and polls so rare that a test sees only what requests themselves find out.
pub(crate) fn config(nodes: impl IntoIterator<Item = SocketAddr>) -> GatewayConfig {
    let names = ["a", "b", "c", "d"];
    let entry = |(name, addr): (&str, SocketAddr)| NeuronEntry { name: name.into(), endpoint: Endpoint::from(addr), ca: None };
    let mut config = GatewayConfig::of(names.into_iter().zip(nodes).map(entry).collect(), Placement::default());
    config.gateway.listen = "127.0.0.1:0".parse().unwrap();
    config.gateway.metrics_listen = "127.0.0.1:0".parse().unwrap();
    config.timeouts.poll_ms = Millis::new(3_600_000);
    config.timeouts.poll_ms_max = Millis::new(60_000);
    config.timeouts.keep_alive_ms = Millis::new(60_000);
    config.timeouts.queue_ms_max = Millis::new(1);
    config
}

/// Waits until `wanted` holds.
pub(crate) async fn until(mut wanted: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !wanted().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("the condition never came to hold");
}

pub(crate) fn chat(model: &str, text: &str) -> Value {
    json!({ "model": model, "messages": [{ "role": "user", "content": text }] })
}

pub(crate) fn streamed(model: &str, text: &str) -> Value {
    let mut body = chat(model, text);
    body["stream"] = true.into();
    body
}

/// An HTTP client for one address.
#[derive(Clone)]
pub(crate) struct TestClient {
    addr: SocketAddr,
    /// Sent with every request.
    usual: HeaderMap,
    pool: Client<HttpConnector, Full<Bytes>>,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// `error.code`
    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl TestClient {
    pub(crate) fn new(addr: SocketAddr) -> Self {
        Self { addr, usual: HeaderMap::new(), pool: Client::builder(TokioExecutor::new()).build(HttpConnector::new()) }
    }

    /// One that shows this key.
    pub(crate) fn with_key(addr: SocketAddr, key: &str) -> Self {
        Self { usual: [(AUTHORIZATION, format!("Bearer {key}").parse().unwrap())].into_iter().collect(), ..Self::new(addr) }
    }

    /// One like this, with connections of its own.
    pub(crate) fn another(&self) -> Self {
        Self { usual: self.usual.clone(), ..Self::new(self.addr) }
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.request(Method::GET, path, HeaderMap::new(), Bytes::new()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        self.request(Method::POST, path, HeaderMap::new(), body.to_string()).await
    }

    pub(crate) async fn chat(&self, body: &Value) -> Reply {
        self.post("/v1/chat/completions", body).await
    }

    pub(crate) async fn request(&self, method: Method, path: &str, headers: HeaderMap, body: impl Into<Bytes>) -> Reply {
        let response = self.open(method, path, headers, body).await;
        let (head, body) = response.into_parts();
        let body = tokio::time::timeout(PATIENCE, body.collect()).await.expect("the answer ends").expect("the answer is whole");
        assert!(body.trailers().is_none(), "the gateway passes no trailers on");
        Reply { status: head.status, headers: head.headers, body: body.to_bytes() }
    }

    /// The head of an answer; dropping it hangs up.
    pub(crate) async fn open(&self, method: Method, path: &str, headers: HeaderMap, body: impl Into<Bytes>) -> http::Response<Incoming> {
        let mut request = http::Request::new(Full::new(body.into()));
        *request.method_mut() = method;
        *request.uri_mut() = format!("http://{}{path}", self.addr).parse().unwrap();
        *request.headers_mut() = headers;
        request.headers_mut().extend(self.usual.clone());
        tokio::time::timeout(PATIENCE, self.pool.request(request)).await.expect("an answer begins").expect("a connection")
    }

    pub(crate) async fn open_chat(&self, body: &Value) -> http::Response<Incoming> {
        self.open(Method::POST, "/v1/chat/completions", HeaderMap::new(), body.to_string()).await
    }
}

/// Asks for `path` of a node before the mock sees it; `None` leaves the answer to the mock.
type Intercept = Arc<dyn Fn(&str, &HeaderMap) -> Option<Response> + Send + Sync>;

/// A mock node whose requests are recorded, whose answers can be replaced, and whose loads wait at a gate.
pub(crate) struct RawNode {
    pub(crate) addr: SocketAddr,
    pub(crate) mock: MockNeuron,
    pub(crate) seen: Arc<Mutex<Vec<(String, HeaderMap, Bytes)>>>,
    /// One permit lets one load through.
    pub(crate) gate: Arc<Notify>,
}

impl RawNode {
    pub(crate) async fn start(
        models: Vec<MockModel>,
        intercept: impl Fn(&str, &HeaderMap) -> Option<Response> + Send + Sync + 'static,
    ) -> Self {
        let mock = MockNeuron::new(MockConfig::new(models));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let gate = Arc::new(Notify::new());
        let intercept: Intercept = Arc::new(intercept);
        let (record, hold) = (Arc::clone(&seen), Arc::clone(&gate));
        let around =
            move |request: Request, next: Next| around(request, next, Arc::clone(&record), Arc::clone(&hold), Arc::clone(&intercept));
        let router = neuron_api::router(Arc::new(mock.clone()), ApiLimits::default()).layer(from_fn(around));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { addr, mock, seen, gate }
    }
}

async fn around(
    request: Request,
    next: Next,
    seen: Arc<Mutex<Vec<(String, HeaderMap, Bytes)>>>,
    gate: Arc<Notify>,
    intercept: Intercept,
) -> Response {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let body = body.collect().await.unwrap().to_bytes();
    seen.lock().unwrap().push((path.clone(), head.headers.clone(), body.clone()));
    if path == "/models/load" {
        gate.notified().await;
    }
    match intercept(&path, &head.headers) {
        Some(response) => response,
        None => next.run(Request::from_parts(head, body.into())).await,
    }
}

/// A gateway in front of one [`RawNode`] named `a`.
pub(crate) async fn in_front_of(node: &RawNode, change: impl FnOnce(&mut GatewayConfig)) -> Rig {
    let mut config = config([node.addr]);
    change(&mut config);
    Rig { gateway: Gateway::start(config).await.unwrap(), nodes: Vec::new() }
}
