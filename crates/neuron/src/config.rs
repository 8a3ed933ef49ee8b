//! What the operator asks of this node: a TOML file, a few environment variables, and the command line on top.
//!
//! Everything is read once at start. [`NeuronConfig::parse`] takes the file's text and a lookup for the environment, so that
//! it reads neither.

mod cli;
mod network;
mod placement;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use cortex_core::{ModelId, ModelSpec};
use serde::Deserialize;

use crate::renewal::{self, Legacy};

pub use cli::{Cli, Command, ModelArg};
pub use network::Network;
pub(crate) use network::is_public;
pub use placement::PlacementConfig;

/// Looks a variable up in the environment; `None` when it is unset.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The process environment. An empty variable counts as unset.
pub fn process_env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Everything the daemon needs to start.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NeuronConfig {
    /// Where the HTTP API listens; port 0 takes any free port.
    pub listen: SocketAddr,
    /// A file with the token that gateways must show (`node_token` of theirs). Absent: whoever reaches the node may use it.
    pub token_file: Option<PathBuf>,
    /// The API is served with TLS. Absent: in the clear.
    pub tls: Option<TlsConfig>,
    /// The models this node may serve.
    pub models: Vec<ModelSpec>,
    /// Loaded at start, in this order; each needs its `[[models]]` entry.
    pub preload: Vec<ModelId>,
    /// More of both, from a rendered placement.
    pub placement: PlacementConfig,
    /// How long running generations may finish after a stop signal, in seconds.
    pub drain_s_max: u64,
    /// The host's processors as a device.
    pub cpu: CpuConfig,
    /// Queues and budgets of each model.
    pub limits: Limits,
    /// Where models come from.
    pub hub: HubConfig,
    /// Pictures that clients send.
    pub images: ImageLimits,
    /// How Qwen-VL checkpoints read pictures.
    pub vision: VisionConfig,
    /// `node-token` among the credentials that systemd hands over; wins over `token_file`.
    #[serde(skip)]
    pub credential: Option<PathBuf>,
    /// What this process was left by the one whose place it took.
    #[serde(skip)]
    pub legacy: Legacy,
}

/// `[tls]`: two PEM files, read again on SIGHUP, and within seconds when they are replaced.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The certificate, then those of the authorities between it and the root.
    pub certificate: PathBuf,
    /// Its private key, without a passphrase.
    pub key: PathBuf,
}

/// The host's processors as a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CpuConfig {
    /// How many CPU devices (`cpu-0`, `cpu-1`, ..) a model can be split over. One is right for everything but tests of tensor
    /// parallelism.
    pub ranks: usize,
    /// Serve on the processors even where there is a GPU. `NEURON_CPU_ONLY` overrides.
    pub only: bool,
}

/// Queues and budgets of each loaded model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Sequences that may wait for a place; one more is answered 503 with `Retry-After`.
    pub waiting_sequences_max: usize,
    /// Sequences computed together.
    pub running_sequences_max: usize,
    /// Tokens computed in one step, prompts and answers together.
    pub step_tokens_max: usize,
    /// Memory that one model's KV cache may take on each device, in MiB. Absent: half of what is free.
    pub kv_cache_mib_max: Option<u64>,
}

/// Where models come from.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HubConfig {
    /// The hub's address, without a slash at the end. `HF_ENDPOINT` wins over it.
    pub endpoint: String,
    /// The folder of `models--org--name`, shared with Python's hub cache. Absent: `$HF_HUB_CACHE`, `$HF_HOME/hub`, or
    /// `~/.cache/huggingface/hub`.
    pub cache_dir: Option<PathBuf>,
    /// A file that holds the token, used when `HF_TOKEN` is not set. Absent: `$HF_HOME/token`, if there is one.
    pub token_file: Option<PathBuf>,
    /// Never ask the hub; serve what the cache holds. `HF_HUB_OFFLINE=1` sets it.
    pub offline: bool,
    /// Tries without progress before a download is given up.
    pub tries_max: u32,
    /// Files fetched at once.
    pub parallel_files_max: usize,
    /// Draw a bar on stderr while files come. Off by default: whoever runs the node in their own process draws for themselves.
    #[serde(skip)]
    pub progress_bar: bool,
    /// From `HF_TOKEN` only: a secret has no place in this file.
    #[serde(skip)]
    pub token: Option<Secret>,
    /// `hf-token` among the credentials that systemd hands over; wins over `token_file`.
    #[serde(skip)]
    pub credential: Option<PathBuf>,
}

/// Bounds on the pictures of one request, and on fetching them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageLimits {
    /// Pictures in one request.
    pub per_request_max: usize,
    /// Encoded size of one picture, in MiB.
    pub size_mib_max: usize,
    /// From the first look-up to the last byte of one picture, in seconds.
    pub fetch_s_max: u64,
    /// Redirects followed for one picture.
    pub redirects_max: usize,
    /// Fetch pictures that are named by `http` and `https` addresses at all.
    pub fetch: bool,
    /// Networks that pictures may be fetched from although their addresses are not public (`10.1.0.0/16`).
    pub private_networks_allowed: Vec<Network>,
}

/// How Qwen-VL checkpoints read pictures. The defaults are what the checkpoints were trained with; each switch goes back to what
/// older runtimes did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VisionConfig {
    /// Positions of patches as older runtimes took them. `NEURON_VISION_LEGACY_POS=1` sets it.
    pub legacy_positions: bool,
    /// Rotary embedding of the tower as older runtimes computed it. `NEURON_VISION_LEGACY_ROPE=1` sets it.
    pub legacy_rope: bool,
    /// Three-axis rotary positions in the text model. `NEURON_MROPE=0` clears it.
    pub mrope: bool,
}

/// Where and how much is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// `NEURON_LOG` or `RUST_LOG`: directives such as `info,neuron_engine=debug`.
    pub filter: String,
    /// `JOURNAL_STREAM`, which systemd sets.
    pub journal_stream: Option<String>,
}

/// A value that never shows in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read `{}`: {source}; name the file with --config", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is not TOML, or has a key or value that is not known. The message shows the line.
    #[error("{}: {message}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// The line, what is wrong with it, and what is expected.
        message: String,
    },
    /// A value is well-formed and still cannot be.
    #[error("`{field}` {problem}")]
    Invalid {
        /// The key or variable at fault.
        field: String,
        /// What is wrong and what to do.
        problem: String,
    },
}

impl Default for NeuronConfig {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::UNSPECIFIED, 13131).into(),
            token_file: None,
            tls: None,
            models: Vec::new(),
            preload: Vec::new(),
            placement: PlacementConfig::default(),
            drain_s_max: 30,
            cpu: CpuConfig::default(),
            limits: Limits::default(),
            hub: HubConfig::default(),
            images: ImageLimits::default(),
            vision: VisionConfig::default(),
            credential: None,
            legacy: Legacy::default(),
        }
    }
}

impl Default for CpuConfig {
    fn default() -> Self {
        Self { ranks: 1, only: false }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { waiting_sequences_max: 1024, running_sequences_max: 128, step_tokens_max: 512, kv_cache_mib_max: None }
    }
}

impl Default for HubConfig {
    fn default() -> Self {
        Self {
            endpoint: "https://huggingface.co".to_owned(),
            cache_dir: None,
            token_file: None,
            offline: false,
            tries_max: 5,
            parallel_files_max: 4,
            progress_bar: false,
            token: None,
            credential: None,
        }
    }
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self { per_request_max: 32, size_mib_max: 20, fetch_s_max: 20, redirects_max: 3, fetch: true, private_networks_allowed: Vec::new() }
    }
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self { legacy_positions: false, legacy_rope: false, mrope: true }
    }
}

impl NeuronConfig {
    /// Reads `file` and the process environment.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Unreadable { file: file.to_owned(), source })?;
        Self::parse(&text, file, &process_env)
    }

    /// The configuration that `text` and `env` make; `file` is only named in errors.
    pub fn parse(text: &str, file: &Path, env: Env) -> Result<Self, ConfigError> {
        let config: Self =
            toml::from_str(text).map_err(|error| ConfigError::Malformed { file: file.to_owned(), message: error.to_string() })?;
        config.with_env(env)?.checked()
    }

    /// Lays the environment over the file's values.
    pub fn with_env(mut self, env: Env) -> Result<Self, ConfigError> {
        let hub = &mut self.hub;
        if let Some(endpoint) = env("HF_ENDPOINT") {
            hub.endpoint = endpoint;
        }
        hub.endpoint.truncate(hub.endpoint.trim_end_matches('/').len());
        set_switch(env, "HF_HUB_OFFLINE", &mut hub.offline)?;
        hub.token = env("HF_TOKEN").map(Secret::new);
        let credentials = env("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        hub.credential = credentials.as_ref().map(|folder| folder.join("hf-token"));
        self.credential = credentials.map(|folder| folder.join("node-token"));
        let home = hub_home(env);
        if hub.cache_dir.is_none() {
            hub.cache_dir = env("HF_HUB_CACHE").map(PathBuf::from).or_else(|| home.as_ref().map(|home| home.join("hub")));
        }
        if hub.token_file.is_none() {
            hub.token_file = home.map(|home| home.join("token"));
        }
        set_switch(env, "NEURON_VISION_LEGACY_POS", &mut self.vision.legacy_positions)?;
        set_switch(env, "NEURON_VISION_LEGACY_ROPE", &mut self.vision.legacy_rope)?;
        set_switch(env, "NEURON_MROPE", &mut self.vision.mrope)?;
        set_switch(env, "NEURON_CPU_ONLY", &mut self.cpu.only)?;
        if let Some(legacy) = env(renewal::VARIABLE) {
            self.legacy = serde_json::from_str(&legacy)
                .map_err(|error| invalid(renewal::VARIABLE, format!("is not for people: {error}; unset it")))?;
        }
        Ok(self)
    }

    /// Refuses what cannot work: a model named twice, a preload that is no model, a bound of zero.
    pub fn checked(self) -> Result<Self, ConfigError> {
        for (at, model) in self.models.iter().enumerate() {
            if self.models[..at].iter().any(|other| other.model_id == model.model_id) {
                return Err(invalid("models", format!("name `{}` twice: give each entry its own model_id", model.model_id)));
            }
        }
        if let Some(id) = self.preload.iter().find(|id| self.model(id).is_none()) {
            return Err(invalid("preload", format!("names `{id}`, which has no [[models]] entry: add one with model_id = \"{id}\"")));
        }
        let bounds = [
            ("cpu.ranks", self.cpu.ranks),
            ("limits.waiting_sequences_max", self.limits.waiting_sequences_max),
            ("limits.running_sequences_max", self.limits.running_sequences_max),
            ("limits.step_tokens_max", self.limits.step_tokens_max),
            ("hub.parallel_files_max", self.hub.parallel_files_max),
            ("hub.tries_max", self.hub.tries_max as usize),
        ];
        match bounds.into_iter().find(|(_, value)| *value == 0) {
            Some((field, _)) => Err(invalid(field, "must be at least 1".to_owned())),
            None => Ok(self),
        }
    }

    /// The keys of `newer` that differ and that only a restart makes count.
    pub fn needs_restart_for(&self, newer: &Self) -> Vec<&'static str> {
        let differs = [
            ("listen", self.listen != newer.listen),
            ("token_file", self.token_file != newer.token_file),
            ("tls", self.tls != newer.tls),
            ("drain_s_max", self.drain_s_max != newer.drain_s_max),
            ("cpu", self.cpu != newer.cpu),
            ("limits", self.limits != newer.limits),
            ("hub", self.hub != newer.hub),
            ("images", self.images != newer.images),
            ("vision", self.vision != newer.vision),
        ];
        differs.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }

    /// What gateways must show, if anything. A file that is named and cannot be read is an error: nothing is ever left open by mistake.
    pub fn token(&self) -> Result<Option<Secret>, ConfigError> {
        let given = self.credential.as_ref().filter(|file| file.exists());
        let Some(file) = given.or(self.token_file.as_ref()) else { return Ok(None) };
        let text = std::fs::read_to_string(file)
            .map_err(|error| invalid("token_file", format!("`{}` cannot be read: {error}", file.display())))?;
        match text.trim() {
            "" => Err(invalid("token_file", format!("`{}` is empty: put a secret in it, or leave the key out", file.display()))),
            token => Ok(Some(Secret::new(token))),
        }
    }

    /// The `[[models]]` entry of `id`.
    pub fn model(&self, id: &ModelId) -> Option<&ModelSpec> {
        self.models.iter().find(|model| model.model_id == *id)
    }
}

impl LogSettings {
    /// Read apart from the configuration, since the configuration's own errors are told before any log is set up.
    pub fn from_env(env: Env) -> Self {
        let filter = env("NEURON_LOG").or_else(|| env("RUST_LOG")).unwrap_or_else(|| "info".to_owned());
        Self { filter, journal_stream: env("JOURNAL_STREAM") }
    }
}

impl Secret {
    /// Wraps a value; white space around it is dropped, since tokens often come from files with a newline at the end.
    pub fn new(value: impl AsRef<str>) -> Self {
        Self(value.as_ref().trim().to_owned())
    }

    /// The value itself, for the one header it belongs in.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// `$HF_HOME`, or what the hub's own tools take when it is not set.
fn hub_home(env: Env) -> Option<PathBuf> {
    let cache = || env("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| env("HOME").map(|home| Path::new(&home).join(".cache")));
    env("HF_HOME").map(PathBuf::from).or_else(|| cache().map(|cache| cache.join("huggingface")))
}

fn set_switch(env: Env, name: &str, switch: &mut bool) -> Result<(), ConfigError> {
    let Some(value) = env(name) else { return Ok(()) };
    *switch = match value.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => true,
        "0" | "false" | "no" | "off" => false,
        _ => return Err(invalid(name, format!("is `{value}`: set it to 1 or 0"))),
    };
    Ok(())
}

fn invalid(field: &str, problem: String) -> ConfigError {
    ConfigError::Invalid { field: field.to_owned(), problem }
}
