//! What every handler knows.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption};
use cortex_core::config::GatewayConfig;
use cortex_core::openai::ApiError;
use cortex_core::{FleetReport, GatewayReport, ModelId};
use cortex_net::{DialWaits, Dialer, Names, Resolve, SystemResolver, Trust};
use cortex_placement::{Action, nearest};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::fleet::{Fleet, FleetCell};
use crate::keys::Keys;
use crate::lifecycle::{Lifecycle, Tasks};
use crate::metrics::Metrics;
use crate::nodes::Nodes;
use crate::poller::Poller;
use crate::proxy::Proxy;
use crate::queue::Queues;
use crate::reconciler::{Clock, Counted, Reconciler};
use crate::retry_budget::RetryBudget;
use crate::routing::RouteError;
use crate::setup::Setup;
use crate::telemetry::Telemetry;

/// The gateway's parts, wired.
#[derive(Debug)]
pub(crate) struct App {
    /// As it was at the start: limits, waits and addresses.
    pub(crate) config: GatewayConfig,
    /// As it is: nodes, models, keys.
    pub(crate) live: Arc<ArcSwap<Setup>>,
    pub(crate) fleet: Arc<FleetCell>,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) proxy: Proxy,
    /// Whose certificates nodes must show.
    pub(crate) trust: Arc<ArcSwap<Trust>>,
    /// Where the nodes' names lead.
    pub(crate) names: Arc<Names>,
    pub(crate) metrics: Arc<Metrics>,
    /// Where spans go; absent: nowhere.
    pub(crate) telemetry: Option<Telemetry>,
    pub(crate) queues: Arc<Queues>,
    pub(crate) keys: ArcSwap<Keys>,
    pub(crate) retry_budget: RetryBudget,
    /// What the reconciler decided last.
    pub(crate) plan: Arc<ArcSwap<Vec<Action>>>,
    /// By what it counts the memory of models; nothing before its first look.
    memory: Arc<ArcSwapOption<Counted>>,
    /// Cancelled when the gateway was told to stop.
    pub(crate) stopping: CancellationToken,
    started: Instant,
    /// Seconds since 1970 at start: `created` of the models.
    pub(crate) started_unix_s: u64,
    turn: AtomicUsize,
}

impl App {
    /// Over the network, to where `resolver` says that names lead. Nothing runs yet.
    pub(crate) fn new(setup: Setup, trust: Trust, resolver: Arc<dyn Resolve>) -> Result<Self, prometheus::Error> {
        let trust = Arc::new(ArcSwap::from_pointee(trust));
        let timeouts = &setup.config.timeouts;
        let waits = DialWaits { connect_max: timeouts.connect_ms_max.duration(), acknowledge_max: timeouts.acknowledge_ms_max.duration() };
        let names = Arc::new(Names::new(resolver, waits.connect_max));
        let dialer = Dialer::with_names(Arc::clone(&trust), waits, Arc::clone(&names));
        Ok(Self { trust, names, ..Self::over(setup, dialer)? })
    }

    /// With nodes that `dialer` connects to.
    pub(crate) fn over(setup: Setup, dialer: Dialer) -> Result<Self, prometheus::Error> {
        let config = setup.config.clone();
        let metrics = Arc::new(Metrics::new()?);
        let fleet = Arc::new(FleetCell::new(Fleet::new(&config.neurons, Arc::new(config.placement.clone()))));
        let nodes = Arc::new(Nodes::new(&config, dialer.clone(), Arc::clone(&fleet), Arc::clone(&metrics)));
        let lifecycle = Lifecycle::new(Arc::clone(&fleet), &config.limits, &config.timeouts);
        Ok(Self {
            proxy: Proxy::new(&config.timeouts, &config.gateway.node_token, dialer),
            trust: Arc::default(),
            telemetry: None,
            names: Arc::new(Names::new(Arc::new(SystemResolver), config.timeouts.connect_ms_max.duration())),
            lifecycle: Arc::new(lifecycle),
            keys: ArcSwap::from_pointee(Keys::new(&config.keys)),
            live: Arc::new(ArcSwap::from_pointee(setup)),
            queues: Arc::new(Queues::new(config.limits.queue_len_max.get())),
            retry_budget: RetryBudget::new(clock::now()),
            plan: Arc::default(),
            memory: Arc::default(),
            config,
            fleet,
            nodes,
            metrics,
            stopping: CancellationToken::new(),
            started: clock::now(),
            started_unix_s: clock::unix_s(),
            turn: AtomicUsize::new(0),
        })
    }

    pub(crate) fn poller(&self) -> Arc<Poller> {
        Arc::new(Poller {
            fleet: Arc::clone(&self.fleet),
            nodes: Arc::clone(&self.nodes),
            lifecycle: Arc::clone(&self.lifecycle),
            metrics: Arc::clone(&self.metrics),
            limits: self.config.limits.clone(),
            timeouts: self.config.timeouts.clone(),
        })
    }

    /// What it starts runs on `tasks`.
    pub(crate) fn reconciler(&self, poller: Arc<Poller>, tasks: Tasks) -> Reconciler {
        Reconciler {
            setup: Arc::clone(&self.live),
            fleet: Arc::clone(&self.fleet),
            nodes: Arc::clone(&self.nodes),
            lifecycle: Arc::clone(&self.lifecycle),
            poller,
            metrics: Arc::clone(&self.metrics),
            tasks,
            plan: Arc::clone(&self.plan),
            memory: Arc::clone(&self.memory),
            clock: Clock::start(),
        }
    }

    /// Takes over the nodes, models and keys of `setup`. Requests under way are not touched.
    pub(crate) fn reconfigure(&self, setup: Setup) {
        let config = &setup.config;
        self.nodes.reconfigure(config);
        let hosts: BTreeSet<&str> = config.neurons.iter().map(|entry| entry.endpoint.host()).collect();
        self.names.retain(|host| hosts.contains(host));
        let placement = Arc::new(config.placement.clone());
        self.fleet.update(|fleet| fleet.reconfigured(&config.neurons, Arc::clone(&placement)));
        self.keys.store(Arc::new(self.keys.load().replaced_by(&config.keys)));
        self.live.store(Arc::new(setup));
        self.lifecycle.wake();
    }

    /// Leaves all connections to nodes when a name leads elsewhere, for ever. What is under way on them goes on.
    pub(crate) async fn follow_names(self: Arc<Self>) {
        let mut moves = self.names.moves();
        while moves.changed().await.is_ok() {
            self.proxy.leave_connections();
            self.nodes.reconfigure(&self.live.load().config);
        }
    }

    /// For the client. Where models come from a placement, the error for a model that is not in it says so.
    pub(crate) fn explained(&self, error: RouteError) -> ApiError {
        match error {
            RouteError::UnknownModel(model) if self.live.load().placement.is_some() => {
                let known = self.fleet.load();
                let near = nearest(&model, known.models().map(ModelId::as_str)).map(|near| format!(" Did you mean `{near}`?"));
                let message = format!(
                    "The model `{model}` is not in the placement.{} GET /v1/models lists what is; to serve it, add it to models.ncl and reload.",
                    near.unwrap_or_default()
                );
                ApiError::new(404, "invalid_request_error", Some("model_not_found"), message).with_param("model")
            }
            error => error.into(),
        }
    }

    /// Replicas that are equally good take turns.
    pub(crate) fn next_turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn report(&self) -> FleetReport {
        let nodes = self.fleet.load().report(clock::now());
        let gateway = GatewayReport {
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_s: (clock::now() - self.started).as_secs_f64(),
            requests_in_flight: nodes.iter().map(|node| node.requests_in_flight).sum(),
        };
        let memory = self.memory.load().as_ref().map_or_else(Vec::new, |counted| counted.report());
        FleetReport { gateway, nodes, memory }
    }
}
