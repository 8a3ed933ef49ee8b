//! The gateway's configuration: what `cortex.toml` may say, with its defaults. Text and variables come in as arguments.

mod keys;
mod overrides;
mod parse;
mod telemetry;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::ModelId;
use crate::node::NodeId;
use crate::placement::Placement;

pub use keys::{KeyEntry, KeyHash};
pub use parse::{ConfigError, Place};
pub use telemetry::{OtlpEndpoint, TelemetrySection};

/// Everything the gateway is told before it starts.
#[derive(Clone, Debug, PartialEq)]
pub struct GatewayConfig {
    /// `[gateway]`
    pub gateway: GatewaySection,
    /// `[limits]`
    pub limits: Limits,
    /// `[timeouts]`
    pub timeouts: Timeouts,
    /// `[eviction]`
    pub eviction: EvictionSection,
    /// `[telemetry]`
    pub telemetry: TelemetrySection,
    /// `[[neurons]]`
    pub neurons: Vec<NeuronEntry>,
    /// `[[models]]` and `[aliases]`
    pub placement: Placement,
    /// `[[models]]`: how firmly each declared model stays in memory.
    pub terms: BTreeMap<ModelId, ModelTerms>,
    /// `[[keys]]`: who may use the gateway. None: whoever reaches it may do everything.
    pub keys: Vec<KeyEntry>,
}

/// `[gateway]`: where it listens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewaySection {
    /// Clients connect here.
    pub listen: SocketAddr,
    /// Prometheus connects here.
    pub metrics_listen: SocketAddr,
    /// Anthropic's clients begin their system prompt with a billing line that differs per conversation, so that no two
    /// conversations share a cached prefix. It is left out unless this is true.
    pub keep_billing_header: bool,
    /// `[gateway.tls]`: clients connect with TLS. Absent: in the clear.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSection>,
    /// Whose certificates `https` nodes must show: a PEM file of authorities. Absent: any public authority's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// What the gateway tells its nodes to prove itself. Empty: nothing.
    pub node_token: String,
    /// A file that holds the same, one that fewer may read than this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_token_file: Option<PathBuf>,
    /// A file with more `[[keys]]`, one that fewer may read than this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys_file: Option<PathBuf>,
    /// What `cortex placement render` wrote, or the `models.ncl` itself. Its hosts join `[[neurons]]`; models and aliases come from it alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement_file: Option<PathBuf>,
    /// Web pages of these origins may call the gateway from a browser (`https://app.example`, or `*`).
    pub cors_origins: Vec<String>,
}

impl Default for GatewaySection {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 31313)),
            metrics_listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 31314)),
            keep_billing_header: false,
            tls: None,
            ca: None,
            node_token: String::new(),
            node_token_file: None,
            keys_file: None,
            placement_file: None,
            cors_origins: Vec::new(),
        }
    }
}

/// `[gateway.tls]`: two PEM files. They are read again on SIGHUP, and within seconds when they are replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSection {
    /// The certificate, then those of the authorities between it and the root.
    pub certificate: PathBuf,
    /// Its private key, without a passphrase.
    pub key: PathBuf,
}

/// `[eviction]`: how models come and go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvictionSection {
    /// Which of several models makes room first.
    pub strategy: EvictionStrategy,
    /// Loads and unloads of a node after which it is drained and its memory rebuilt; 0: never.
    pub defrag_after_cycles: u32,
    /// A model stays at least this long after its load; longer where models contend for a device.
    pub residency_ms_min: Millis,
    /// A model without a request for this long makes room whatever its priority.
    pub idle_ms: Millis,
}

impl Default for EvictionSection {
    fn default() -> Self {
        Self {
            strategy: EvictionStrategy::Lru,
            defrag_after_cycles: 50,
            residency_ms_min: Millis::new(10_000),
            idle_ms: Millis::new(60_000),
        }
    }
}

/// Which of several models makes room first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvictionStrategy {
    /// The one that was not asked for the longest.
    #[default]
    Lru,
    /// The one of the lowest priority; among equals as `lru`.
    Priority,
}

/// How firmly one model stays in memory, and what it takes there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelTerms {
    /// MiB on each of its devices. Absent: known only once it was loaded; until then it is loaded into free memory only.
    pub vram_mb: Option<u64>,
    /// Whether it stays.
    pub residency: Residency,
    /// Nodes that hold it always; 1 for a model that stays.
    pub replicas_min: Option<usize>,
    /// Nodes that hold it at most. More than are loaded: it spreads into free memory when its replicas are full.
    pub replicas_max: Option<usize>,
    /// Who yields when memory is short: the lower one.
    pub priority: i32,
    /// Unloaded after this long without a request. Absent: only when something else needs the memory.
    pub idle_unload_s: Option<u64>,
}

impl Default for ModelTerms {
    fn default() -> Self {
        Self { vram_mb: None, residency: Residency::OnDemand, replicas_min: None, replicas_max: None, priority: 100, idle_unload_s: None }
    }
}

/// How firmly a model stays in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Residency {
    /// Always there; nothing displaces it.
    Pinned,
    /// Always there, but a model of higher priority may displace it for a while.
    Resident,
    /// Loaded when asked for.
    #[default]
    OnDemand,
}

/// `[limits]`: the bound of everything that could grow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Longest request body; beyond it 413.
    pub body_bytes_max: NonZeroUsize,
    /// Connections open at once; beyond it a client waits to be accepted.
    pub connections_max: NonZeroUsize,
    /// Requests that wait for one model's load; beyond it 429.
    pub load_waiters_max: NonZeroUsize,
    /// Requests that wait for a place on one model's replicas, all of which are full; beyond it 429.
    pub queue_len_max: NonZeroUsize,
    /// Nodes that one request is sent to before it fails.
    pub tries_max: NonZeroUsize,
    /// Requests in a row that fail on a node which still answers polls, after which it is ejected, unless half of the nodes are.
    pub node_failures_max: NonZeroUsize,
    /// Failed polls in a row after which a node is ejected; a refused connection ejects at once.
    pub poll_failures_max: NonZeroUsize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: count(64 << 20),
            connections_max: count(10_000),
            load_waiters_max: count(1_024),
            queue_len_max: count(256),
            tries_max: count(4),
            node_failures_max: count(5),
            poll_failures_max: count(3),
        }
    }
}

/// `[timeouts]`: the bound of every wait.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// Time for a client to send a request's head.
    pub head_ms_max: Millis,
    /// Time for a client to send a request's body.
    pub body_ms_max: Millis,
    /// Time to connect to a node, and before it, to find its address.
    pub connect_ms_max: Millis,
    /// Time for a node's host to acknowledge what was sent to it, also where nothing was said for as long; a connection to a host that is
    /// gone without a word ends then.
    pub acknowledge_ms_max: Millis,
    /// Time between two look-ups of the nodes' names. Connections to an address that a name has lost are not used again.
    pub resolve_ms: Millis,
    /// Time from sending a request to a node to the first token: queue and prefill, or all of an answer that is not streamed.
    pub first_byte_ms_max: Millis,
    /// Silence in the middle of an answer after which it counts as cut; a live node sends a heartbeat each second.
    pub idle_ms_max: Millis,
    /// Time for a whole request, from its arrival to the last byte of its answer.
    pub total_ms_max: Millis,
    /// Time for a request to wait for a place while all replicas of its model are full.
    pub queue_ms_max: Millis,
    /// A stream that has nothing to say yet gets an SSE comment this often.
    pub keep_alive_ms: Millis,
    /// Time for a node to load a model.
    pub load_ms_max: Millis,
    /// Time for a model that somebody waits for to find a place while every device that could hold it is in use.
    pub place_ms_max: Millis,
    /// Time between two looks at what the fleet should hold when nothing happens.
    pub reconcile_ms: Millis,
    /// How long the reason of a failed load answers further requests for that model.
    pub load_failure_ms: Millis,
    /// Time between two polls of a node that answers.
    pub poll_ms: Millis,
    /// Time between two polls of a node that is ejected.
    pub probe_ms: Millis,
    /// Time for a node to answer a poll.
    pub poll_ms_max: Millis,
    /// Time for open requests to end after the gateway was told to stop.
    pub drain_ms_max: Millis,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            head_ms_max: Millis::new(10_000),
            body_ms_max: Millis::new(120_000),
            connect_ms_max: Millis::new(2_000),
            acknowledge_ms_max: Millis::new(10_000),
            resolve_ms: Millis::new(10_000),
            first_byte_ms_max: Millis::new(600_000),
            idle_ms_max: Millis::new(30_000),
            total_ms_max: Millis::new(3_600_000),
            queue_ms_max: Millis::new(10_000),
            keep_alive_ms: Millis::new(900),
            load_ms_max: Millis::new(1_800_000),
            place_ms_max: Millis::new(60_000),
            reconcile_ms: Millis::new(1_000),
            load_failure_ms: Millis::new(5_000),
            poll_ms: Millis::new(1_000),
            probe_ms: Millis::new(250),
            poll_ms_max: Millis::new(2_000),
            drain_ms_max: Millis::new(30_000),
        }
    }
}

/// Who is served first where there is not enough for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Before the others.
    High,
    /// As usual.
    #[default]
    Normal,
    /// When nobody else waits.
    Low,
}

/// One `[[neurons]]` entry.
#[derive(Clone, Debug, PartialEq)]
pub struct NeuronEntry {
    /// How logs, metrics and placement name the node.
    pub name: NodeId,
    /// Where it listens.
    pub endpoint: Endpoint,
    /// Whose certificate an `https` node must show, instead of `gateway.ca`.
    pub ca: Option<PathBuf>,
}

/// `http://host:port` or `https://host:port`, checked and in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint(String);

impl Endpoint {
    /// Accepts `http://host:port` and `https://host:port`, with or without a slash at the end.
    ///
    /// # Errors
    /// Says what is missing or too much.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lower = text.trim().to_ascii_lowercase();
        let Some((scheme @ ("http" | "https"), rest)) = lower.split_once("://") else {
            return Err(format!("`{text}` must begin with http:// or https://"));
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#', '@', ' ']) {
            return Err(format!("`{text}` must be http://host:port, without a path or a user"));
        }
        match authority.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0) => {
                Ok(Self(format!("{scheme}://{authority}")))
            }
            _ => Err(format!("`{text}` names no host and port; neuron listens on 13131 by default")),
        }
    }

    /// `http://host:port` or `https://host:port`
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `host:port`
    pub fn authority(&self) -> &str {
        self.0.split_once("://").map_or("", |(_, authority)| authority)
    }

    /// `host`, as it is looked up; an IPv6 address is without its brackets.
    pub fn host(&self) -> &str {
        self.authority().rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']'])
    }

    /// `http` or `https`
    pub fn scheme(&self) -> &str {
        self.0.split_once("://").map_or("", |(scheme, _)| scheme)
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self(format!("http://{address}"))
    }
}

/// A span of time of at least one millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(NonZeroU64);

impl Millis {
    /// `ms` milliseconds; 0 counts as 1.
    pub const fn new(ms: u64) -> Self {
        match NonZeroU64::new(ms) {
            Some(ms) => Self(ms),
            None => Self(NonZeroU64::MIN),
        }
    }

    /// The same span for timers.
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0.get())
    }
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self::of(Vec::new(), Placement::default())
    }
}

impl GatewayConfig {
    /// These nodes and this placement, everything else by default.
    pub fn of(neurons: Vec<NeuronEntry>, placement: Placement) -> Self {
        Self {
            gateway: GatewaySection::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            eviction: EvictionSection::default(),
            telemetry: TelemetrySection::default(),
            neurons,
            placement,
            terms: BTreeMap::new(),
            keys: Vec::new(),
        }
    }
}

const fn count(n: usize) -> NonZeroUsize {
    match NonZeroUsize::new(n) {
        Some(n) => n,
        None => NonZeroUsize::MIN,
    }
}
