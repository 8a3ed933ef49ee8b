//! The command line of `neuron`, laid over the file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Parser, Subcommand};
use cortex_core::{ModelId, ModelSpec};

use super::{ConfigError, Env, NeuronConfig};
use crate::bench::BenchArgs;

/// The node daemon: serves models of this host over HTTP.
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "neuron", version, about, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Configuration file (TOML).
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// Address of the HTTP API; wins over the file.
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// A model to load at start: a hub id, a folder, or ID=SOURCE. May be given several times.
    #[arg(long = "model", value_name = "MODEL")]
    pub models: Vec<ModelArg>,
    /// A rendered placement; wins over the file's.
    #[arg(long, value_name = "PATH")]
    pub placement: Option<PathBuf>,
    /// Check the configuration, print what it comes to, and stop.
    #[arg(long)]
    pub check: bool,
}

/// What `neuron` can do besides serving.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Measure how fast a model runs on this host.
    Bench(Box<BenchArgs>),
}

/// One `--model`: `Qwen/Qwen3-0.6B`, `./models/cortex-demo`, or `chat=/models/qwen3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelArg {
    /// The id that clients use.
    pub id: ModelId,
    /// A folder or hub id; absent when the id itself is one.
    pub source: Option<String>,
}

impl FromStr for ModelArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let empty = || format!("`{text}` names no model: write a hub id, a folder, or ID=SOURCE");
        if let Some((id, source)) = text.split_once('=') {
            let whole = !id.is_empty() && !source.is_empty();
            return if whole { Ok(Self { id: id.into(), source: Some(source.to_owned()) }) } else { Err(empty()) };
        }
        if text.starts_with(['/', '.', '~']) {
            let name = Path::new(text).file_name().and_then(|name| name.to_str()).ok_or_else(empty)?;
            return Ok(Self { id: name.into(), source: Some(text.to_owned()) });
        }
        if text.is_empty() { Err(empty()) } else { Ok(Self { id: text.into(), source: None }) }
    }
}

impl Cli {
    /// The file (or the defaults, without one), the environment and the command line together.
    pub fn resolve(&self, env: Env) -> Result<NeuronConfig, ConfigError> {
        let text = match &self.config {
            Some(file) => std::fs::read_to_string(file).map_err(|source| ConfigError::Unreadable { file: file.clone(), source })?,
            None => String::new(),
        };
        let file = self.config.as_deref().unwrap_or(Path::new("defaults"));
        self.lay_over(NeuronConfig::parse(&text, file, env)?).with_placement()?.checked()
    }

    fn lay_over(&self, mut config: NeuronConfig) -> NeuronConfig {
        if let Some(listen) = self.listen {
            config.listen = listen;
        }
        if let Some(file) = &self.placement {
            config.placement.file = Some(file.clone());
        }
        for model in &self.models {
            match config.models.iter_mut().find(|entry| entry.model_id == model.id) {
                Some(entry) => entry.source = model.source.clone().or(entry.source.take()),
                None => config.models.push(ModelSpec { source: model.source.clone(), ..ModelSpec::new(model.id.clone()) }),
            }
            if !config.preload.contains(&model.id) {
                config.preload.push(model.id.clone());
            }
        }
        config
    }
}
