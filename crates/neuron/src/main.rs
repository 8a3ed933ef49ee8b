//! `neuron`: the node daemon as a systemd service or in a terminal.

use std::fmt::Display;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use cortex_core::Harness;
use cortex_log::Logging;
use neuron::bench::{self, BenchArgs};
use neuron::config::{Cli, Command, LogSettings, process_env};
use neuron::preload::Preloaded;
use neuron::pulse::Pulse;
use neuron::{Daemon, Ended, NeuronConfig, RunningDaemon, logging};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What the shell is told when the configuration is at fault, as clap does for the command line.
const BAD_CONFIG: u8 = 2;
/// How long the API may take to answer its first question.
const FIRST_ANSWER_MAX: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(Command::Bench(args)) = &cli.command {
        return measure(args);
    }
    let config = match configuration(&cli) {
        Ok(config) => config,
        Err(error) => return fail(&error, BAD_CONFIG),
    };
    if cli.check {
        println!("{config:#?}");
        return ExitCode::SUCCESS;
    }
    match start(&cli, config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format_args!("{error:#}"), 1),
    }
}

/// The figures go to standard output, what happens meanwhile to the log.
fn measure(args: &BenchArgs) -> ExitCode {
    if let Err(error) = args.check() {
        return fail(&error, BAD_CONFIG);
    }
    match print_figures(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format_args!("{error:#}"), 1),
    }
}

fn print_figures(args: &BenchArgs) -> anyhow::Result<()> {
    let _logging = logging::init(&LogSettings::from_env(&process_env))?;
    let report = tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(bench::run(args))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

fn fail(error: &dyn Display, code: u8) -> ExitCode {
    eprintln!("error: {error}");
    code.into()
}

fn configuration(cli: &Cli) -> Result<NeuronConfig, neuron::config::ConfigError> {
    let mut config = cli.resolve(&process_env)?;
    config.hub.progress_bar = true;
    Ok(config)
}

fn start(cli: &Cli, config: NeuronConfig) -> anyhow::Result<()> {
    let logging = logging::init(&LogSettings::from_env(&process_env))?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(cli, config, logging))
}

async fn run(cli: &Cli, config: NeuronConfig, logging: Logging) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let mut daemon = Daemon::start(config).await?;
    if let Some(note) = &daemon.harness.discovery().gpu_note {
        tracing::info!("{note}");
    }
    if let Err(reason) = Pulse::new(daemon.addr, daemon.speaks_tls(), FIRST_ANSWER_MAX).beat().await {
        anyhow::bail!("the API on {} does not answer: {reason}", daemon.addr);
    }
    tell(&[NotifyState::Ready, NotifyState::Status(&format!("listens on {}", daemon.addr))]);
    if let Stopped::DeviceFailed(reason) = serve(cli, &mut daemon, &mut signals).await? {
        tracing::error!("a device failed, starting anew: {reason}");
        tell(&[NotifyState::Status(&format!("a device failed, starting anew: {reason}"))]);
        let legacy = daemon.leave().await.with_context(|| format!("a device failed: {reason}"))?;
        drop(logging); // writes what is left, for nothing of this program stays
        return Err(legacy.hand_over());
    }
    tell(&[NotifyState::Stopping]);
    tracing::info!("draining; a second signal stops at once");
    let drained = daemon.shutdown();
    tokio::pin!(drained);
    loop {
        tokio::select! {
            () = &mut drained => return Ok(()),
            told = signals.next() => if told == Told::Stop {
                anyhow::bail!("stopped before the drain was over");
            },
        }
    }
}

/// Why it does not serve any more.
enum Stopped {
    Told,
    DeviceFailed(String),
}

/// Until told to stop, or until a device fails.
async fn serve(cli: &Cli, daemon: &mut RunningDaemon, signals: &mut Signals) -> anyhow::Result<Stopped> {
    let mut pulse = sd_notify::watchdog_enabled().map(|limit| Pulse::new(daemon.addr, daemon.speaks_tls(), limit));
    let mut preloads = daemon.preloads();
    loop {
        tokio::select! {
            ended = daemon.ended() => return match ended {
                Ended::DeviceFailed(reason) => Ok(Stopped::DeviceFailed(reason)),
                Ended::ServerFailed(error) => Err(error),
            },
            told = signals.next() => match told {
                Told::Stop => return Ok(Stopped::Told),
                Told::Reload => reload(cli, daemon),
            },
            beat = beat(pulse.as_mut()) => match beat {
                Ok(()) => tell(&[NotifyState::Watchdog]),
                Err(reason) => tracing::error!("the API does not answer, and the watchdog is not fed: {reason}"),
            },
            Ok(()) = preloads.changed() => {
                let status = preloads.borrow_and_update().as_deref().map(summary).unwrap_or_default();
                tell(&[NotifyState::Status(&status)]);
            }
        }
    }
}

/// The file again, with what it points to; a file that cannot be used changes nothing.
fn reload(cli: &Cli, daemon: &mut RunningDaemon) {
    let now = NotifyState::monotonic_usec_now().unwrap_or(NotifyState::MonotonicUsec(0));
    tell(&[NotifyState::Reloading, now]);
    let status = match configuration(cli) {
        Ok(config) => {
            let waiting = daemon.reload(config);
            if !waiting.is_empty() {
                tracing::warn!("reloaded; what changed in {} counts after a restart", waiting.join(", "));
            }
            tracing::info!("reloaded");
            "reloaded".to_owned()
        }
        Err(error) => {
            tracing::error!("not reloaded, everything stays as it was: {error}");
            format!("not reloaded: {error}")
        }
    };
    tell(&[NotifyState::Ready, NotifyState::Status(status.lines().next().unwrap_or_default())]);
}

/// How preloads ended, in one line.
fn summary(ended: &[Preloaded]) -> String {
    let failed: Vec<&str> = ended.iter().filter(|(_, result)| result.is_err()).map(|(id, _)| id.as_str()).collect();
    let loaded = ended.len() - failed.len();
    match failed.as_slice() {
        [] => format!("{loaded} preloaded"),
        failed => format!("{loaded} preloaded, failed: {}", failed.join(", ")),
    }
}

/// Never, where nobody watches.
async fn beat(pulse: Option<&mut Pulse>) -> Result<(), String> {
    match pulse {
        Some(pulse) => pulse.beat().await,
        None => std::future::pending().await,
    }
}

/// What a signal means here.
#[derive(PartialEq, Eq)]
enum Told {
    Stop,
    Reload,
}

/// What a service manager or a terminal sends.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// From here on none of them ends the process by itself.
    fn listen() -> std::io::Result<Self> {
        let [terminate, interrupt, hangup] = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
        Ok(Self { terminate: terminate?, interrupt: interrupt?, hangup: hangup? })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::Reload,
        }
    }
}

/// Without systemd there is nobody to tell, which is fine.
fn tell(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("systemd does not listen: {error}");
    }
}
