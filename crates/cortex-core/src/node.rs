//! A node as the gateway sees it, and what `GET /admin/fleet` answers.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::discovery::{Discovery, Health};
use crate::model::{ModelId, ModelReport};

/// The name that the configuration gives a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// The name as operators write it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for NodeId {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl From<String> for NodeId {
    fn from(name: String) -> Self {
        Self(name.into())
    }
}

impl Borrow<str> for NodeId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Whether a node gets requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum NodeState {
    /// Has not answered yet.
    Unknown,
    /// Answers and takes requests.
    Ready,
    /// Answers, finishes what it has, takes nothing new.
    Draining,
    /// Does not answer; it is probed, and tried only when nothing else is left.
    Ejected {
        /// What happened, in words.
        reason: String,
        /// How long ago it was ejected, in seconds.
        for_s: f64,
    },
}

/// The answer of `GET /admin/fleet`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FleetReport {
    /// The gateway that answers.
    pub gateway: GatewayReport,
    /// The nodes, in the configuration's order.
    pub nodes: Vec<NodeReport>,
    /// What models take, by name; those of which nothing is known are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory: Vec<MemoryReport>,
}

/// What one replica of a model takes of each device that holds it, in MiB.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// The model.
    pub model: ModelId,
    /// As the operator says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declared_mb: Option<u64>,
    /// As computed from its checkpoint, where the operator does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub computed_mb: Option<u64>,
    /// The most that any node has measured since the gateway started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_mb: Option<u64>,
}

/// The gateway about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GatewayReport {
    /// cortex's version.
    pub version: String,
    /// Seconds since start.
    pub uptime_s: f64,
    /// Requests that this gateway is working on.
    pub requests_in_flight: usize,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Its name in the configuration.
    pub name: NodeId,
    /// Where it listens.
    pub endpoint: String,
    /// Whether it gets requests.
    #[serde(flatten)]
    pub state: NodeState,
    /// What it says about itself; absent before the first answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discovery: Option<Discovery>,
    /// Its last figures; absent before the first answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// The models it knows, as it reported them last.
    pub models: Vec<ModelReport>,
    /// Models that the placement puts here but the node does not list yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub placed: Vec<ModelId>,
    /// Requests that this gateway has open on the node.
    pub requests_in_flight: usize,
    /// Tokens generated per second between the last two polls; absent before the second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// How long ago the node answered last, in seconds; absent before the first answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_s_ago: Option<f64>,
}

/// The body of `POST /admin/models/load` and `POST /admin/models/unload`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelAction {
    /// The model, or an alias of it.
    pub model: ModelId,
    /// On which node. Absent: where the gateway would put it (load), everywhere (unload).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
}

/// What a [`ModelAction`] did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelActionReport {
    /// The model.
    pub model: ModelId,
    /// The nodes where it is loaded now (load), or was loaded (unload).
    pub nodes: Vec<NodeId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_report_survives_json_with_its_state_beside_the_name() {
        let report = NodeReport {
            name: "quad".into(),
            endpoint: "http://quad:13131".into(),
            state: NodeState::Ejected { reason: "connection refused".into(), for_s: 4.5 },
            discovery: None,
            health: None,
            models: vec![],
            placed: vec!["a/b".into()],
            requests_in_flight: 2,
            tokens_per_second: None,
            seen_s_ago: None,
        };
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["state"], "ejected");
        assert_eq!(json["reason"], "connection refused");
        assert_eq!(serde_json::from_value::<NodeReport>(json).unwrap(), report);
    }
}
