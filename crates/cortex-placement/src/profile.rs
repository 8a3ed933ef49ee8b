//! One model of the placement: how it is loaded, what it needs, and how firmly it stays.

use std::collections::BTreeMap;
use std::fmt;

use cortex_core::{Capability, ModelId, ModelSpec, NodeId};
use serde::{Deserialize, Serialize};

/// Everything that placement knows of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelProfile {
    /// How a node loads it; `devices` and `generation` are filled in per load.
    pub spec: ModelSpec,
    /// What it can be asked for.
    pub capabilities: Vec<Capability>,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// Models that may answer in its place, in this order.
    pub fallbacks: Vec<ModelId>,
    /// Whether it stays in memory.
    pub residency: Residency,
    /// On how many nodes it is held.
    pub replicas: Replicas,
    /// Who yields when memory is short: the lower one.
    pub priority: i32,
    /// Unloaded after this long without a request. Absent: only when something else needs the memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_unload_s: Option<u64>,
    /// The memory it takes; absent when nobody could tell before the first load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub footprint: Option<Footprint>,
    /// What a host must have.
    pub requires: Requires,
    /// The hosts that may hold it, each with how; empty: any.
    pub placement: BTreeMap<NodeId, Spot>,
}

/// How firmly a model stays in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Residency {
    /// Always there; nothing displaces it.
    Pinned,
    /// Always there, but a model of higher priority may displace it for a while.
    Resident,
    /// Loaded when asked for.
    OnDemand,
}

/// Bounds of the number of nodes that hold a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replicas {
    /// Held always. 0 for a model on demand.
    pub min: usize,
    /// Held at most.
    pub max: usize,
}

/// Memory of one replica. Every device of it takes the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Footprint {
    /// Devices that one replica is split over.
    pub devices: usize,
    /// MiB on each of them: weights, KV cache and work space.
    pub device_mb: u64,
    /// Who says so.
    pub origin: FootprintOrigin,
}

/// Where a footprint comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FootprintOrigin {
    /// `vram_mb` in the operator's file.
    Declared,
    /// Computed from the checkpoint's headers.
    Checkpoint,
}

/// What a host must have to hold a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requires {
    /// GPUs in the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices_min: Option<usize>,
    /// MiB in all of each device used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_memory_mb_min: Option<u64>,
    /// Of each device used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_capability_min: Option<ComputeCapability>,
}

/// How a host holds a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spot {
    /// When it is there.
    #[serde(default)]
    pub mode: Mode,
    /// These devices and no others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<Vec<usize>>,
}

/// When a model is on a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// A resident replica if the packing puts one here, otherwise on demand.
    #[default]
    Auto,
    /// A resident replica is here.
    Preload,
    /// Never a resident replica; loaded here when asked for.
    OnDemand,
}

/// A CUDA compute capability, written `8.9`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ComputeCapability {
    major: u8,
    minor: u8,
}

impl ComputeCapability {
    /// Reads `8.9`.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl From<ComputeCapability> for String {
    fn from(capability: ComputeCapability) -> Self {
        capability.to_string()
    }
}

impl TryFrom<String> for ComputeCapability {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("`{text}` is no compute capability; write it as \"8.9\""))
    }
}

impl ModelProfile {
    /// Devices that one replica is split over.
    pub fn tensor_parallel(&self) -> usize {
        self.spec.tensor_parallel.unwrap_or(1).max(1)
    }

    /// Whether `host` may hold it, and how; `None` when it may not.
    pub fn spot(&self, host: &NodeId) -> Option<Spot> {
        match self.placement.is_empty() {
            true => Some(Spot::default()),
            false => self.placement.get(host).cloned(),
        }
    }
}
