//! The proof that a placement can work, written down so that anybody can check it.

use std::collections::BTreeMap;

use cortex_core::{ModelId, NodeId};
use serde::{Deserialize, Serialize};

/// Where everything goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// Every resident replica, all of them in memory at the same time.
    pub residents: Vec<Assignment>,
    /// For each model on demand, one way to load it.
    pub witnesses: Vec<Witness>,
    /// MiB free on each device of each host while the residents are in memory.
    pub slack_mb: BTreeMap<NodeId, Vec<u64>>,
    /// The same with one host gone, for each host; empty when that was not asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub survives: Vec<Survival>,
}

/// One replica on one host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// The model.
    pub model: ModelId,
    /// Where.
    pub host: NodeId,
    /// On which of its devices.
    pub devices: Vec<usize>,
}

/// How a model on demand can be loaded while the residents are in memory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Witness {
    /// The model.
    pub model: ModelId,
    /// Where.
    pub host: NodeId,
    /// On which of its devices.
    pub devices: Vec<usize>,
    /// Residents of that host, of lower priority, that make room.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub displaces: Vec<ModelId>,
}

/// The fleet without one of its hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Survival {
    /// The host that is gone.
    pub without: NodeId,
    /// As in [`Certificate::residents`].
    pub residents: Vec<Assignment>,
    /// As in [`Certificate::witnesses`].
    pub witnesses: Vec<Witness>,
}
