//! A mock node that is reached through memory, and what can break between it and the gateway.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use cortex_net::Line;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use neuron_api::ApiLimits;
use neuron_api::mock::{Faults, MockConfig, MockModel, MockNeuron};
use tokio::io::DuplexStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::plan::{ModelPlan, Plan};

/// The nodes of one history.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) nodes: Vec<Arc<Node>>,
    /// Whose lines these are.
    pub(super) gateway: usize,
}

impl Line for Network {
    fn dial(&self, authority: &str) -> io::Result<DuplexStream> {
        let found = self.nodes.iter().find(|node| authority == format!("{}:1", node.name));
        found.ok_or_else(|| io::Error::other("no such host"))?.connect(self.gateway)
    }
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: &'static str,
    models: Vec<MockModel>,
    memory_bytes: u64,
    places: usize,
    latency: Duration,
    state: Mutex<NodeState>,
}

#[derive(Debug)]
struct NodeState {
    /// The process; another one after each death.
    process: Process,
    wire: Wire,
    /// Orders to load that are being carried out, in this process, by the gateway that gave them.
    loading: BTreeMap<(usize, String), usize>,
    wrong: Vec<String>,
}

#[derive(Clone, Debug)]
struct Process {
    mock: MockNeuron,
    router: Router,
    /// Cuts all its connections.
    life: CancellationToken,
}

/// What the network does to those who ask the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    Good,
    Refuses,
    Deaf,
    Resets,
    Cuts(usize),
    Stalls(usize),
}

/// The connection that a request came on.
#[derive(Clone, Debug)]
struct Connection {
    /// Cuts it.
    scissors: CancellationToken,
    gateway: usize,
}

impl Node {
    pub(super) fn new(name: &'static str, plan: &Plan) -> Arc<Self> {
        let model = |model: &ModelPlan| MockModel {
            memory_bytes: model.vram_mb << 20,
            load_time: model.load,
            prefill_time: model.prefill,
            token_time: model.token,
            ..MockModel::available(model.id)
        };
        let models: Vec<MockModel> = plan.models.iter().map(model).collect();
        Arc::new_cyclic(|node: &std::sync::Weak<Self>| {
            let memory_bytes = plan.memory_mb << 20;
            let process = Process::new(name, &models, memory_bytes, plan.places, node.clone());
            let state = NodeState { process, wire: Wire::Good, loading: BTreeMap::new(), wrong: Vec::new() };
            Self { name, models, memory_bytes, places: plan.places, latency: plan.latency, state: Mutex::new(state) }
        })
    }

    pub(super) fn mock(&self) -> MockNeuron {
        self.state.lock().unwrap().process.mock.clone()
    }

    /// What went against the rules.
    pub(super) fn wrong(&self) -> Vec<String> {
        self.state.lock().unwrap().wrong.clone()
    }

    pub(super) fn wire(&self, wire: Wire) {
        self.state.lock().unwrap().wire = wire;
    }

    pub(super) fn is_down(&self) -> bool {
        self.state.lock().unwrap().wire == Wire::Refuses
    }

    pub(super) fn faults(&self, faults: &Faults) {
        self.models.iter().for_each(|model| assert!(self.mock().set_faults(model.id.as_str(), faults.clone())));
    }

    pub(super) fn dies(&self) {
        let mut state = self.state.lock().unwrap();
        state.wire = Wire::Refuses;
        state.process.life.cancel();
    }

    /// With nothing in memory, if it was dead.
    pub(super) fn returns(self: &Arc<Self>) {
        if self.is_down() {
            let process = Process::new(self.name, &self.models, self.memory_bytes, self.places, Arc::downgrade(self));
            let mut state = self.state.lock().unwrap();
            (state.process, state.wire) = (process, Wire::Good);
            state.loading.clear();
        }
    }

    fn connect(&self, gateway: usize) -> io::Result<DuplexStream> {
        const BUFFER: usize = 16 << 10;
        let (process, wire) = {
            let state = self.state.lock().unwrap();
            (state.process.clone(), state.wire)
        };
        if wire == Wire::Refuses {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        let cut = process.life.child_token();
        tokio::spawn(cut.clone().run_until_cancelled_owned(async move {
            if wire == Wire::Deaf {
                let _open = theirs;
                std::future::pending::<()>().await;
            } else {
                let connection = Connection { scissors: cut, gateway };
                let service = service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
                    request.extensions_mut().insert(connection.clone());
                    process.router.clone().oneshot(request)
                });
                let _ = http1::Builder::new().serve_connection(TokioIo::new(theirs), service).await;
            }
        }));
        Ok(ours)
    }

    fn begins_load(&self, gateway: usize, model: &str) {
        let mut state = self.state.lock().unwrap();
        let orders = state.loading.entry((gateway, model.to_owned())).or_default();
        *orders += 1;
        if *orders > 1 {
            let wrong = format!("{} was told to load {model} while it loads it", self.name);
            state.wrong.push(wrong);
        }
    }

    fn ends_load(&self, order: &(usize, String), life: &CancellationToken) {
        let mut state = self.state.lock().unwrap();
        if let Some(orders) = state.loading.get_mut(order).filter(|_| !life.is_cancelled()) {
            *orders -= 1;
        }
    }
}

impl Process {
    fn new(name: &str, models: &[MockModel], memory_total_bytes: u64, active_max: usize, node: std::sync::Weak<Node>) -> Self {
        let config = MockConfig { memory_total_bytes, active_max, ..MockConfig::new(models.iter().cloned()).named(name) };
        let mock = MockNeuron::new(config);
        let life = CancellationToken::new();
        let router = neuron_api::router(Arc::new(mock.clone()), ApiLimits::default());
        let router = router.layer(from_fn_with_state((node, life.clone()), between));
        Self { mock, router, life }
    }
}

/// What breaks on the way in and out, and what the node was told.
async fn between(State((node, life)): State<(std::sync::Weak<Node>, CancellationToken)>, request: Request, next: Next) -> Response {
    let node = node.upgrade().expect("the history holds its nodes");
    tokio::time::sleep(node.latency).await;
    let wire = node.state.lock().unwrap().wire;
    let Connection { scissors, gateway } = request.extensions().get::<Connection>().expect("each has one").clone();
    if request.uri().path() == "/models/load" {
        return load(&node, &life, gateway, request, next).await;
    }
    if !request.uri().path().starts_with("/v1/") {
        return next.run(request).await;
    }
    if wire == Wire::Resets {
        scissors.cancel();
        std::future::pending::<()>().await;
    }
    let answer = next.run(request).await;
    match wire {
        Wire::Cuts(pieces) => answer.map(|body| Body::new(Broken { body, pieces, cuts: Some(scissors) })),
        Wire::Stalls(pieces) => answer.map(|body| Body::new(Broken { body, pieces, cuts: None })),
        _ => answer,
    }
}

/// An order is under way until it is answered or whoever gave it hangs up.
async fn load(node: &Arc<Node>, life: &CancellationToken, gateway: usize, request: Request, next: Next) -> Response {
    struct Order<'a>(&'a Node, &'a CancellationToken, (usize, String));
    impl Drop for Order<'_> {
        fn drop(&mut self) {
            self.0.ends_load(&self.2, self.1);
        }
    }
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let spec: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let model = spec["model_id"].as_str().unwrap_or_default().to_owned();
    node.begins_load(gateway, &model);
    let _order = Order(node, life, (gateway, model.clone()));
    let answer = next.run(Request::from_parts(head, Body::from(body))).await;
    let (head, body) = answer.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    if String::from_utf8_lossy(&body).contains("bytes are free") {
        node.state.lock().unwrap().wrong.push(format!("{} was told to load {model}, which has no room there", node.name));
    }
    Response::from_parts(head, Body::from(body))
}

/// An answer that is cut, or stops, after so many pieces.
struct Broken {
    body: Body,
    pieces: usize,
    cuts: Option<CancellationToken>,
}

impl http_body::Body for Broken {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<bytes::Bytes>, axum::Error>>> {
        if self.pieces == 0 {
            self.cuts.iter().for_each(CancellationToken::cancel);
            return Poll::Pending;
        }
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.pieces -= usize::from(frame.is_ready());
        frame
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
