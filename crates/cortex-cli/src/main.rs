//! The `cortex` command: the gateway, a whole node with its gateway in one process, and what people ask a running fleet.

#[cfg(feature = "local")]
mod banner;
mod chat;
mod client;
mod conversation;
#[cfg(feature = "local")]
mod demo;
mod doctor;
mod error;
mod log;
mod models;
mod output;
mod picture;
mod placement;
mod serve;
mod signals;
mod status;
mod style;
mod table;
mod units;
#[cfg(feature = "local")]
mod up;

use std::future::Future;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use cortex_net::Trust;

use crate::client::Gateway;
use crate::error::{CliError, Result, Status};

/// Serves language models from a fleet of GPU hosts.
#[derive(Debug, Parser)]
#[command(name = "cortex", version, arg_required_else_help = true, after_help = EXIT_STATUS)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_STATUS: &str = "Exit status: 0 well; 1 failed; 2 wrong usage; 3 the gateway does not answer; \
4 the fleet is not well (status); 130 stopped by Ctrl-C.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a gateway and a neuron with a model in one process
    #[cfg(feature = "local")]
    Up(up::UpArgs),
    /// Run a gateway in front of the neurons that its configuration names
    Serve(serve::ServeArgs),
    /// Show the nodes of the fleet: state, memory, models, load
    Status {
        #[command(flatten)]
        ask: AskArgs,
        /// Show it as it changes, until q
        #[arg(long, conflicts_with = "json")]
        watch: bool,
    },
    /// Check a configuration and every node that it names
    Doctor(serve::ServeArgs),
    /// List the models that can be asked for
    Models(AskArgs),
    /// Talk to a model
    Chat {
        #[command(flatten)]
        gateway: GatewayArgs,
        #[command(flatten)]
        chat: chat::ChatArgs,
    },
    /// Check models.ncl, render it, plan, explain: where models go, proven
    Placement(placement::PlacementArgs),
    /// Write a completion script for a shell to standard output
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, clap::Args)]
struct AskArgs {
    #[command(flatten)]
    gateway: GatewayArgs,
    /// Write the gateway's answer as JSON
    #[arg(long)]
    json: bool,
}

/// Where `cortex up` and `cortex serve` listen when nobody says otherwise.
const GATEWAY_DEFAULT: &str = "http://127.0.0.1:31313";

#[derive(Debug, clap::Args)]
struct GatewayArgs {
    /// The gateway to ask
    #[arg(long, value_name = "URL", env = "CORTEX_GATEWAY", default_value = GATEWAY_DEFAULT)]
    gateway: String,
    /// The API key, where the gateway asks for one
    #[arg(long, value_name = "KEY", env = "CORTEX_API_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Whose certificate an https gateway must show: a PEM file of authorities, instead of the public ones
    #[arg(long, value_name = "FILE", env = "CORTEX_CA")]
    ca: Option<std::path::PathBuf>,
}

impl GatewayArgs {
    fn connect(&self) -> Result<Gateway> {
        let trust = self.ca.as_deref().map_or_else(|| Ok(Trust::public()), Trust::of_file);
        Gateway::new(&self.gateway, self.key.clone(), trust.map_err(|error| CliError::new(error.to_string()))?)
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(status)) => status.into(),
        Err(error) => {
            eprintln!("{error}");
            error.status().into()
        }
    }
}

/// `None` is success.
fn run(command: Command) -> Result<Option<Status>> {
    match command {
        #[cfg(feature = "local")]
        Command::Up(args) => serving(up::run(args)),
        Command::Serve(args) => serving(serve::run(args)),
        Command::Status { ask, watch: true } => asking(async { status::watch(&ask.gateway.connect()?).await }),
        Command::Status { ask, watch: false } => asking(async { status::run(&ask.gateway.connect()?, ask.json).await }),
        Command::Doctor(args) => asking(doctor::run(args)),
        Command::Models(ask) => asking(async { models::run(&ask.gateway.connect()?, ask.json).await.map(|()| None) }),
        Command::Chat { gateway, chat } => asking(async { chat::run(&gateway.connect()?, chat).await.map(|()| None) }),
        Command::Placement(args) => asking(placement::run(args)),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "cortex", &mut std::io::stdout());
            Ok(None)
        }
    }
}

/// Runs a program that serves, on as many threads as the machine has.
fn serving(program: impl Future<Output = Result<()>>) -> Result<Option<Status>> {
    block_on(tokio::runtime::Builder::new_multi_thread(), program).map(|()| None)
}

/// Runs a command that asks something, on this thread.
fn asking(command: impl Future<Output = Result<Option<Status>>>) -> Result<Option<Status>> {
    block_on(tokio::runtime::Builder::new_current_thread(), command)
}

fn block_on<T>(mut builder: tokio::runtime::Builder, future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = builder.enable_all().build().map_err(|error| CliError::new(format!("cannot start: {error}")))?;
    runtime.block_on(future)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
