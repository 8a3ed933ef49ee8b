//! `cortex up`: a neuron and a gateway in one process, with the demo model or another one.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::time::Duration;

use cortex_core::config::{GatewayConfig, NeuronEntry};
use cortex_core::placement::Placement;
use cortex_core::{Harness, ModelId, ModelReport, ModelSpec, ModelStatus};
use cortex_gateway::{Gateway, Listeners, RunningGateway};
use cortex_log::Logging;
use neuron::config::{ModelArg, NeuronConfig, process_env};
use neuron::{Daemon, Ended, RunningDaemon};
use sd_notify::NotifyState;

use crate::banner::Banner;
use crate::error::{CliError, Result};
use crate::serve::{cannot_listen, listen, notify, stop};
use crate::signals::StopSignals;
use crate::style::Style;
use crate::{demo, log, output};

/// The name under which the gateway knows its only node.
const NODE: &str = "local";
/// How often a waiting person sees news of a load.
const PROGRESS_MS: u64 = 100;

/// What the command line asks for.
#[derive(Debug, clap::Args)]
pub(crate) struct UpArgs {
    /// A folder with a checkpoint, a hub id, or ID=FOLDER; may be given several times [default: the demo model inside this program]
    #[arg(short, long, value_name = "MODEL")]
    model: Vec<ModelArg>,
    /// Where clients connect
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:31313")]
    listen: SocketAddr,
    /// Where Prometheus connects
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:31314")]
    metrics_listen: SocketAddr,
    /// Where the neuron listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:13131")]
    neuron_listen: SocketAddr,
}

/// Loads, serves until told to stop, then lets open requests end.
pub(crate) async fn run(args: UpArgs) -> Result<()> {
    // A load that fails is told by the command itself.
    let logging = log::start("warn,neuron::harness=error")?;
    let mut signals = StopSignals::listen()?;
    let (gateway, mut daemon) = tokio::select! {
        started = start(args) => started?,
        // Nobody is served yet, so there is nothing to drain.
        () = signals.next() => return Ok(()),
    };
    notify(NotifyState::Ready);
    tokio::select! {
        () = signals.next() => {}
        ended = daemon.ended() => return Err(go_on(ended, gateway, daemon, logging).await),
    }
    notify(NotifyState::Stopping);
    eprintln!("draining; Ctrl-C again stops at once");
    let drain = async {
        let drained = gateway.shutdown().await;
        daemon.shutdown().await;
        drained
    };
    stop(&mut signals, drain).await
}

/// After a device failed: the program anew, in this one's place. Answers only when that cannot be.
async fn go_on(ended: Ended, gateway: RunningGateway, daemon: RunningDaemon, logging: Logging) -> CliError {
    let reason = match ended {
        Ended::ServerFailed(error) => return error.into(),
        Ended::DeviceFailed(reason) => reason,
    };
    eprintln!("a device failed, starting anew: {reason}");
    let legacy = daemon.leave().await;
    gateway.shutdown().await;
    drop(logging);
    match legacy {
        Ok(legacy) => legacy.hand_over().into(),
        Err(error) => CliError::new(format!("{error:#}")).note(format!("the last one: {reason}")),
    }
}

/// Takes the addresses first, because that fails fast; then loads; then opens the door.
async fn start(args: UpArgs) -> Result<(RunningGateway, RunningDaemon)> {
    let api = listen("--listen", args.listen).await?;
    let metrics = listen("--metrics-listen", args.metrics_listen).await?;
    let specs = specs(args.model)?;
    let daemon = node(args.neuron_listen, specs.clone()).await?;
    let mut reports = Vec::new();
    for spec in specs {
        reports.push(load(&*daemon.harness, spec).await?);
    }
    let entry = NeuronEntry { name: NODE.into(), endpoint: daemon.addr.into(), ca: None };
    let config = GatewayConfig::of(vec![entry], Placement::default());
    let gateway = Gateway::start_on(config, Listeners { api, metrics }).await.map_err(anyhow::Error::from)?;
    let banner = Banner {
        gateway: gateway.addr,
        metrics: gateway.metrics_addr,
        neuron: daemon.addr,
        threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        discovery: &daemon.harness.discovery(),
        models: &reports,
    };
    output::text(&banner.render(Style::of_stdout()))?;
    Ok((gateway, daemon))
}

/// A node in this process that may serve `models`.
async fn node(address: SocketAddr, models: Vec<ModelSpec>) -> Result<RunningDaemon> {
    let config = NeuronConfig { listen: address, models, ..NeuronConfig::default() };
    let config = config.with_env(&process_env).and_then(NeuronConfig::checked).map_err(anyhow::Error::from)?;
    Daemon::start(config).await.map_err(|error| match error.downcast_ref::<std::io::Error>() {
        Some(refused) => cannot_listen("--neuron-listen", address, refused),
        None => error.into(),
    })
}

/// What to load: what was asked for, or the demo.
fn specs(models: Vec<ModelArg>) -> Result<Vec<ModelSpec>> {
    if models.is_empty() {
        let source = demo::folder()?.to_string_lossy().into_owned();
        return Ok(vec![ModelSpec { source: Some(source), ..ModelSpec::new(demo::MODEL_ID) }]);
    }
    Ok(models.into_iter().map(|model| ModelSpec { source: model.source, ..ModelSpec::new(model.id) }).collect())
}

/// Loads a model; a person who waits at a terminal sees how far it is.
async fn load(harness: &dyn Harness, spec: ModelSpec) -> Result<ModelReport> {
    let id = spec.model_id.clone();
    let load = harness.load(spec);
    tokio::pin!(load);
    let watched = std::io::stderr().is_terminal();
    let mut progress = Progress::default();
    let outcome = loop {
        tokio::select! {
            outcome = &mut load => break outcome,
            () = tokio::time::sleep(Duration::from_millis(PROGRESS_MS)), if watched => progress.show(&id, &harness.models()),
        }
    };
    progress.clear();
    outcome.map_err(|error| CliError::new(error.to_string()))
}

/// One line at a terminal that is written over itself.
#[derive(Default)]
struct Progress {
    shown: Option<u8>,
}

impl Progress {
    fn show(&mut self, id: &ModelId, models: &[ModelReport]) {
        let status = models.iter().find(|model| model.id == *id).map(|model| &model.status);
        let Some(ModelStatus::Loading { percent }) = status else { return };
        if self.shown != Some(*percent) {
            eprint!("\r  loading  {id}: {percent:>3} %");
            // Only decoration: the load goes on if the terminal is gone.
            let _ = std::io::stderr().flush();
            self.shown = Some(*percent);
        }
    }

    fn clear(&self) {
        if self.shown.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}
