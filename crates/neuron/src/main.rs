//! `neuron`: the node daemon as a systemd service or in a terminal.

use clap::Parser;
use neuron::config::{Cli, LogSettings, process_env};
use neuron::{Daemon, NeuronConfig, logging};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let mut config = cli.resolve(&process_env)?;
    config.hub.progress_bar = true;
    if cli.check {
        println!("{config:#?}");
        return Ok(());
    }
    logging::init(&LogSettings::from_env(&process_env))?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(config))
}

async fn run(config: NeuronConfig) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut daemon = Daemon::start(config).await?;
    if let Some(note) = &cortex_core::Harness::discovery(daemon.harness.as_ref()).gpu_note {
        tracing::info!("{note}");
    }
    tell(&[NotifyState::Ready]);
    tokio::select! {
        error = daemon.failed() => return Err(error),
        () = either(&mut terminate, &mut interrupt) => {}
    }
    tell(&[NotifyState::Stopping]);
    tracing::info!("draining; a second signal stops at once");
    tokio::select! {
        () = daemon.shutdown() => Ok(()),
        () = either(&mut terminate, &mut interrupt) => anyhow::bail!("stopped before the drain was over"),
    }
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Without systemd there is nobody to tell, which is fine.
fn tell(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("systemd does not listen: {error}");
    }
}
