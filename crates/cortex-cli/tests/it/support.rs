//! A fleet of mock nodes behind the real gateway, and the real `cortex` program to ask it.

use std::io::Write;
use std::process::{Command, Stdio};

use cortex_core::config::{GatewayConfig, NeuronEntry};
use cortex_core::placement::Placement;
use cortex_gateway::{Gateway, RunningGateway};
use neuron_api::mock::{MockConfig, MockModel, MockNeuron, MockServer};

/// A gateway and its one node.
pub(crate) struct Fleet {
    pub(crate) gateway: RunningGateway,
    pub(crate) node: MockServer,
}

impl Fleet {
    /// A node with these models behind a gateway on a free port.
    pub(crate) async fn start(models: impl IntoIterator<Item = MockModel>) -> Self {
        let node = MockNeuron::new(MockConfig::new(models)).serve().await.unwrap();
        let entry = NeuronEntry { name: "mock".into(), endpoint: node.addr.into(), ca: None };
        let mut config = GatewayConfig::of(vec![entry], Placement::default());
        config.gateway.listen = "127.0.0.1:0".parse().unwrap();
        config.gateway.metrics_listen = config.gateway.listen;
        Self { gateway: Gateway::start(config).await.unwrap(), node }
    }

    /// Runs `cortex` with this fleet as its gateway.
    pub(crate) async fn cortex(&self, args: &[&str]) -> Ran {
        self.cortex_with_input(args, "").await
    }

    /// The same with `input` in a pipe.
    pub(crate) async fn cortex_with_input(&self, args: &[&str], input: &str) -> Ran {
        let mut command = command(args);
        command.env("CORTEX_GATEWAY", format!("http://{}", self.gateway.addr));
        let input = input.to_owned();
        tokio::task::spawn_blocking(move || run(command, &input)).await.unwrap()
    }
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// `cortex ARGS` with nothing of this test's own environment that could change what it says.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cortex"));
    command.args(args);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CORTEX_")) {
        command.env_remove(name);
    }
    command
}

/// Runs a program to its end.
pub(crate) fn run(mut command: Command, input: &str) -> Ran {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A program that does not read its input closes it early.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { status: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}
