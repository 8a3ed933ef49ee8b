//! The daemon: the engine behind the API on a socket, started and stopped as one thing. `neuron` runs one for a host;
//! `cortex up` runs one inside its own process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use cortex_core::{Harness, ModelSpec};
use cortex_net::{CertificateFiles, Identity, Serving};
use hyper_util::service::TowerToHyperService;
use neuron_api::ApiLimits;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backend::Backend;
use crate::candle::CandleBackend;
use crate::config::{NeuronConfig, Secret, TlsConfig};
use crate::harness::CandleHarness;
use crate::metrics;
use crate::preload::{Declared, Preloaded, Preloader};
use crate::renewal::Legacy;

/// Connections open at once: those of a few gateways with all their requests.
const CONNECTIONS_MAX: usize = 10_000;
/// Time for a caller to send a request's head, and for an idle connection to be used again: longer than a gateway keeps one, so that none is
/// closed while a request is on its way.
const HEAD_WAIT_MAX: Duration = Duration::from_secs(120);

/// Starts nodes.
pub struct Daemon;

/// Why a node cannot go on.
#[derive(Debug)]
pub enum Ended {
    /// Nobody can reach it any more.
    ServerFailed(anyhow::Error),
    /// A device failed, so that only another process can use the GPUs: see [`RunningDaemon::leave`].
    DeviceFailed(String),
}

/// How long clients may take to hear that their streams ended.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

/// A node that listens. Dropping it leaves it running; [`RunningDaemon::shutdown`] ends it.
pub struct RunningDaemon {
    /// Where it listens; the real port where 0 was asked for.
    pub addr: SocketAddr,
    /// The node's abilities, for callers in the same process.
    pub harness: Arc<CandleHarness>,
    drain_max: Duration,
    identity: Option<Arc<Identity>>,
    stop: CancellationToken,
    kill: CancellationToken,
    connections: TaskTracker,
    server: JoinHandle<()>,
    preloader: Preloader,
    /// As it was at the last start or reload.
    config: NeuronConfig,
}

impl Daemon {
    /// A node over this host's devices; see [`Daemon::start_with`].
    pub async fn start(config: NeuronConfig) -> anyhow::Result<RunningDaemon> {
        let backend = CandleBackend::new(&config).context("cannot start the device threads")?;
        Self::start_with(config, Arc::new(backend)).await
    }

    /// Listens, then loads the models of `preload` in their order. Answers as soon as it listens.
    pub async fn start_with(config: NeuronConfig, backend: Arc<dyn Backend>) -> anyhow::Result<RunningDaemon> {
        let token = config.token()?;
        let files = config.tls.clone().map(|TlsConfig { certificate, key }| CertificateFiles { certificate, key });
        let identity = files.map(Identity::read).transpose()?.map(Arc::new);
        let harness = Arc::new(CandleHarness::new(&config, backend)?);
        let listener = TcpListener::bind(config.listen).await.with_context(|| {
            format!("cannot listen on {}: another neuron may be running; choose another address with --listen", config.listen)
        })?;
        let addr = listener.local_addr()?;
        let (stop, kill, connections) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        let serving = Serving {
            connections_max: CONNECTIONS_MAX,
            head_wait_max: HEAD_WAIT_MAX,
            identity: identity.clone(),
            stop: stop.clone(),
            kill: kill.clone(),
            connections: connections.clone(),
        };
        let server = tokio::spawn(serving.run(listener, TowerToHyperService::new(app(harness.clone(), token.as_ref()))));
        if let Some(identity) = &identity {
            tokio::spawn(kill.clone().run_until_cancelled_owned(Arc::clone(identity).keep_fresh()));
        }
        let preloader = Preloader::start(harness.clone(), Declared::of(&config));
        if !config.legacy.models.is_empty() {
            tokio::spawn(inherit(harness.clone(), config.legacy.models.clone(), preloader.ended()));
        }
        tracing::info!(%addr, tls = identity.is_some(), "listening");
        let drain_max = Duration::from_secs(config.drain_s_max);
        Ok(RunningDaemon { addr, harness, drain_max, identity, stop, kill, connections, server, preloader, config })
    }
}

impl RunningDaemon {
    /// Whether callers must speak TLS.
    pub fn speaks_tls(&self) -> bool {
        self.identity.is_some()
    }

    /// Waits until every model of `preload` is loaded or has failed; in the order of the configuration.
    pub async fn preloaded(&self) -> Vec<Preloaded> {
        let mut preloads = self.preloads();
        preloads.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone()).unwrap_or_default()
    }

    /// How the preloads of the configuration ended, and those of each reload.
    pub fn preloads(&self) -> watch::Receiver<Option<Vec<Preloaded>>> {
        self.preloader.ended()
    }

    /// Makes `config` the one that counts, as far as a running node can: models and what is preloaded of them. What was in memory
    /// and is still wanted stays there. Answers which keys wait for a restart.
    pub fn reload(&mut self, config: NeuronConfig) -> Vec<&'static str> {
        let waiting = self.config.needs_restart_for(&config);
        if let Some(Err(error)) = self.identity.as_ref().map(|identity| identity.reread()) {
            tracing::error!(%error, "the certificate in use stays");
        }
        self.harness.configure(&config.models);
        self.preloader.declare(Declared::of(&config));
        self.config.models = config.models;
        self.config.preload = config.preload;
        waiting
    }

    /// Refuses what is new, lets running generations end for at most `drain_s_max`, then unloads everything. Answers when the
    /// memory is back.
    pub async fn shutdown(mut self) {
        let started = Instant::now();
        self.harness.begin_drain();
        self.stop.cancel();
        let _ = (&mut self.server).await;
        self.connections.close();
        if tokio::time::timeout(self.drain_max, self.connections.wait()).await.is_err() {
            tracing::warn!(drain_s_max = self.drain_max.as_secs(), "some generations did not end in time and are cut");
        }
        self.kill.cancel();
        self.connections.wait().await;
        self.harness.shutdown(self.drain_max.saturating_sub(started.elapsed())).await;
        tracing::info!("stopped");
    }

    /// Ends when the node cannot go on.
    pub async fn ended(&mut self) -> Ended {
        let ended = tokio::select! {
            reason = self.harness.device_failure() => return Ended::DeviceFailed(reason),
            ended = &mut self.server => ended,
        };
        Ended::ServerFailed(match ended {
            Ok(()) => anyhow::anyhow!("the server stopped by itself"),
            Err(error) => anyhow::Error::new(error).context("the server broke off"),
        })
    }

    /// After a device failed: lets clients be told so, and answers what the process that takes this one's place is to know. An error when
    /// devices fail too often.
    #[expect(clippy::disallowed_methods, reason = "the next process has no other clock in common with this one")]
    pub async fn leave(self) -> anyhow::Result<Legacy> {
        let legacy = self.config.legacy.after_failure(self.harness.loaded(), SystemTime::now());
        self.harness.begin_drain();
        self.stop.cancel();
        self.connections.close();
        // Every stream has ended by now, so this takes only as long as its end needs to reach the client.
        if tokio::time::timeout(LAST_WORDS_MAX, self.connections.wait()).await.is_err() {
            tracing::warn!("some clients could not be told that their streams ended");
        }
        legacy
    }
}

/// Loads what the process before this one had in memory, as far as it is not there yet.
async fn inherit(harness: Arc<CandleHarness>, models: Vec<ModelSpec>, mut preloads: watch::Receiver<Option<Vec<Preloaded>>>) {
    // A preloader that ended does nothing more.
    let _ = preloads.wait_for(Option::is_some).await;
    for spec in models {
        let id = spec.model_id.clone();
        match harness.load(spec).await {
            Ok(_) => tracing::info!(model = %id, "back in memory"),
            Err(error) => tracing::warn!(model = %id, "not back in memory: {error}"),
        }
    }
}

/// The API, for those who show the token where there is one, and `/metrics`.
fn app(harness: Arc<CandleHarness>, token: Option<&Secret>) -> Router {
    let metrics = Router::new().route("/metrics", get(scrape)).with_state(harness.clone());
    let api = neuron_api::router(harness, ApiLimits::default());
    metrics.merge(match token {
        Some(token) => neuron_api::guarded(api, token.reveal()),
        None => api,
    })
}

async fn scrape(State(harness): State<Arc<CandleHarness>>) -> Response {
    match metrics::render(&harness.health(), &harness.models(), cortex_log::lines_dropped()) {
        Ok(text) => ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
