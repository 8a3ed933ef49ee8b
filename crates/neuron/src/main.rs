//! `neuron`: the node daemon as a systemd service or in a terminal.

use std::fmt::Display;
use std::process::ExitCode;

use clap::Parser;
use neuron::config::{Cli, LogSettings, process_env};
use neuron::{Daemon, NeuronConfig, logging};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What the shell is told when the configuration is at fault, as clap does for the command line.
const BAD_CONFIG: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let config = match cli.resolve(&process_env) {
        Ok(config) => config,
        Err(error) => return fail(&error, BAD_CONFIG),
    };
    if cli.check {
        println!("{config:#?}");
        return ExitCode::SUCCESS;
    }
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format_args!("{error:#}"), 1),
    }
}

fn fail(error: &dyn Display, code: u8) -> ExitCode {
    eprintln!("error: {error}");
    code.into()
}

fn start(mut config: NeuronConfig) -> anyhow::Result<()> {
    config.hub.progress_bar = true;
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
