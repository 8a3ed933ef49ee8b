//! The gateway: one address in front of a fleet of nodes, for clients of OpenAI's and of Anthropic's dialect.
//!
//! A request takes one way: [`router`] names the handler, `dispatch` routes it, has the model loaded if need be and sends it, and the
//! proxy passes the node's bytes on while an observer counts. [`Gateway::start`] is all that other crates need.

mod anthropic;
mod app;
mod call;
mod clock;
mod controllers;
mod desired;
mod dispatch;
mod error;
mod fleet;
mod front;
#[cfg(test)]
mod histories;
mod keep_alive;
mod keys;
mod lifecycle;
mod metrics;
mod middleware;
mod nodes;
mod poller;
mod proxy;
mod queue;
mod rate;
mod reconciler;
mod reload;
mod retry_budget;
mod router;
mod routing;
mod scan;
mod setup;
mod telemetry;
mod tracker;
mod translate;
mod translated;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cortex_core::FleetReport;
use cortex_core::config::GatewayConfig;
use cortex_net::{Identity, Resolve, Serving, SystemResolver, TlsError};
use futures::future::join_all;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::app::App;
use crate::lifecycle::Tasks;
use crate::telemetry::Telemetry;

pub use crate::reload::Reloaded;
pub use crate::setup::{Setup, SetupError};
pub use crate::telemetry::TelemetryError;

/// Connections of scrapers.
const METRICS_CONNECTIONS_MAX: usize = 64;

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({key}): {source}; is another gateway running, or is the address not of this machine?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The setting it comes from.
        key: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// Certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The metrics contradict each other.
    #[error("cannot register the metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// Spans cannot be sent where they should go.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
}

/// The sockets of a gateway, bound by the caller or by [`Listeners::bind`].
#[derive(Debug)]
pub struct Listeners {
    /// For clients.
    pub api: TcpListener,
    /// For Prometheus.
    pub metrics: TcpListener,
}

impl Listeners {
    /// Binds the addresses of `config`; port 0 takes a free one.
    ///
    /// # Errors
    /// The address that cannot be bound, and why.
    pub async fn bind(config: &GatewayConfig) -> Result<Self, StartError> {
        let bind =
            async |address: SocketAddr, key| TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, key, source });
        let section = &config.gateway;
        Ok(Self {
            api: bind(section.listen, "gateway.listen").await?,
            metrics: bind(section.metrics_listen, "gateway.metrics_listen").await?,
        })
    }
}

/// The gateway as a library.
#[derive(Debug)]
pub struct Gateway;

impl Gateway {
    /// Binds the configured addresses and serves.
    ///
    /// # Errors
    /// As [`Listeners::bind`].
    pub async fn start(setup: impl Into<Setup>) -> Result<RunningGateway, StartError> {
        let setup = setup.into();
        let listeners = Listeners::bind(setup.config()).await?;
        Self::start_on(setup, listeners).await
    }

    /// Asks every node once, so that the first request finds a known fleet, and serves on `listeners`.
    ///
    /// # Errors
    /// A socket without an address, certificates that cannot be used, or contradicting metrics.
    pub async fn start_on(setup: impl Into<Setup>, listeners: Listeners) -> Result<RunningGateway, StartError> {
        Self::start_with(setup, listeners, Arc::new(SystemResolver)).await
    }

    /// The same with nodes where `resolver` says that their names lead.
    ///
    /// # Errors
    /// As [`Gateway::start_on`].
    pub async fn start_with(
        setup: impl Into<Setup>,
        listeners: Listeners,
        resolver: Arc<dyn Resolve>,
    ) -> Result<RunningGateway, StartError> {
        let setup = setup.into();
        let section = setup.config.gateway.clone();
        let local =
            |listener: &TcpListener, address, key| listener.local_addr().map_err(|source| StartError::Listen { address, key, source });
        let addr = local(&listeners.api, section.listen, "gateway.listen")?;
        let metrics_addr = local(&listeners.metrics, section.metrics_listen, "gateway.metrics_listen")?;

        let tasks = Tasks::default();
        let Tasks { tracker: background, kill } = tasks.clone();
        let (trust, identity) = (setup.trust()?, setup.identity()?.map(Arc::new));
        let collector_trust = Telemetry::trust(&setup.config.telemetry)?;
        let mut app = App::new(setup, trust, resolver)?;
        let telemetry = Telemetry::new(&app.config.telemetry, collector_trust, &app.metrics)?;
        if let Some((telemetry, exporter)) = telemetry {
            app.telemetry = Some(telemetry);
            background.spawn(exporter.run(kill.clone()));
        }
        let app = Arc::new(app);
        background.spawn(kill.clone().run_until_cancelled_owned(Arc::clone(&app).follow_names()));
        set_out(&app, &tasks).await;
        let resolve_every = app.config.timeouts.resolve_ms.duration();
        background.spawn(kill.clone().run_until_cancelled_owned(Arc::clone(&app.names).keep_fresh(resolve_every)));
        if let Some(identity) = &identity {
            background.spawn(kill.clone().run_until_cancelled_owned(Arc::clone(identity).keep_fresh()));
        }
        let reloading = kill.clone();

        let serving = Serving {
            connections_max: app.config.limits.connections_max.get(),
            head_wait_max: app.config.timeouts.head_ms_max.duration(),
            identity: identity.clone(),
            stop: app.stopping.clone(),
            kill: kill.clone(),
            connections: TaskTracker::new(),
        };
        // Figures are wanted most while the gateway drains, so this listener lives until the end.
        let figures = Serving {
            connections_max: METRICS_CONNECTIONS_MAX,
            identity: None,
            stop: kill.clone(),
            connections: background.clone(),
            ..serving.clone()
        };
        let connections = serving.connections.clone();
        background.spawn(serving.run(listeners.api, TowerToHyperService::new(router::api(Arc::clone(&app)))));
        background.spawn(figures.run(listeners.metrics, TowerToHyperService::new(router::metrics(Arc::clone(&app)))));
        tracing::info!(%addr, %metrics_addr, nodes = app.config.neurons.len(), "the gateway serves");
        let stop = app.stopping.clone().drop_guard();
        Ok(RunningGateway { addr, metrics_addr, app, identity, connections, background, reloading, _stop: stop, kill: kill.drop_guard() })
    }
}

/// Asks every node once, then begins to watch them and to carry out what is decided.
async fn set_out(app: &Arc<App>, tasks: &Tasks) {
    let Tasks { tracker, kill } = tasks.clone();
    let poller = app.poller();
    join_all(app.config.neurons.iter().map(|entry| poller.poll(&entry.name))).await;
    for entry in &app.config.neurons {
        tracker.spawn(kill.clone().run_until_cancelled_owned(Arc::clone(&poller).watch(entry.name.clone())));
    }
    let reconciler = app.reconciler(poller, tasks.clone());
    tracker.spawn(kill.run_until_cancelled_owned(reconciler.run()));
}

/// A gateway at work. Dropping it cuts everything; [`RunningGateway::shutdown`] is the polite way.
#[derive(Debug)]
pub struct RunningGateway {
    /// Where clients connect.
    pub addr: SocketAddr,
    /// Where Prometheus connects.
    pub metrics_addr: SocketAddr,
    app: Arc<App>,
    identity: Option<Arc<Identity>>,
    connections: TaskTracker,
    background: TaskTracker,
    reloading: CancellationToken,
    _stop: DropGuard,
    kill: DropGuard,
}

/// How a shutdown went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were still at work at the deadline, and were cut.
    pub cut: usize,
}

impl RunningGateway {
    /// The fleet as `GET /admin/fleet` tells it.
    pub fn fleet(&self) -> FleetReport {
        self.app.report()
    }

    /// Takes over another configuration while requests are under way: its nodes, models, aliases, keys, origins, certificates and
    /// `[eviction]`.
    ///
    /// # Errors
    /// Certificates that cannot be used; then everything stays as it was.
    pub fn reload(&self, setup: impl Into<Setup>) -> Result<Reloaded, TlsError> {
        let setup = setup.into();
        let trust = setup.trust()?;
        if let Some(identity) = &self.identity {
            identity.reread()?;
        }
        self.app.trust.store(Arc::new(trust));
        let reloaded = reload::reload(&self.app, setup, &self.background, &self.reloading);
        self.app.metrics.config_reloads.with_label_values(&["ok"]).inc();
        tracing::info!(added = ?reloaded.nodes_added, removed = ?reloaded.nodes_removed, "configuration reloaded");
        if !reloaded.after_restart.is_empty() {
            tracing::warn!(sections = ?reloaded.after_restart, "these changes take effect at the next start");
        }
        Ok(reloaded)
    }

    /// Another configuration was wanted and cannot be used: the old one stays, and the metrics tell.
    pub fn reload_failed(&self, why: &dyn std::fmt::Display) {
        self.app.metrics.config_reloads.with_label_values(&["failed"]).inc();
        tracing::error!(%why, "the configuration is unchanged: the new one cannot be used");
    }

    /// Accepts nothing more, lets open requests end within the configured deadline, and cuts the rest.
    pub async fn shutdown(self) -> Drained {
        let deadline: Duration = self.app.config.timeouts.drain_ms_max.duration();
        self.app.stopping.cancel();
        self.connections.close();
        let in_time = tokio::time::timeout(deadline, self.connections.wait()).await.is_ok();
        let cut = if in_time { 0 } else { self.connections.len() };
        self.kill.disarm().cancel();
        self.connections.wait().await;
        self.background.close();
        self.background.wait().await;
        tracing::info!(cut, "the gateway has stopped");
        Drained { cut }
    }
}
