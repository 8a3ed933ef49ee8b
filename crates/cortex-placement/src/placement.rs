//! The rendered placement: what `models.ncl` comes to, as gateways and nodes read it.

use std::collections::BTreeMap;

use cortex_core::{ModelId, ModelSpec, NodeId, PlacedModel};
use serde::{Deserialize, Serialize};

use crate::certificate::Certificate;
use crate::profile::{ComputeCapability, ModelProfile};

/// The number of the JSON form. A reader refuses any other.
pub const VERSION: u32 = 1;

/// What `cortex placement render` writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// [`VERSION`]
    pub version: u32,
    /// A hash over everything else: equal generations are equal placements.
    pub generation: String,
    /// The hosts with what each may load.
    pub hosts: BTreeMap<NodeId, HostPlacement>,
    /// The models by id.
    pub models: BTreeMap<ModelId, ModelProfile>,
    /// What gateways look up.
    pub routing: Routing,
    /// Why it can work.
    pub certificate: Certificate,
}

/// One host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostPlacement {
    /// Where its neuron listens.
    pub endpoint: String,
    /// Its devices, in the order of their indices.
    pub devices: Vec<HostDevice>,
    /// MiB of each device that no model may have.
    pub reserved_mb: u64,
    /// Every model that may be loaded here, ready for neuron: with the devices where they are decided.
    pub models: Vec<ModelSpec>,
    /// The residents of this host, in the order in which they are loaded at start.
    pub preload: Vec<ModelId>,
}

/// A device as the operator declared it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostDevice {
    /// The product.
    pub name: String,
    /// MiB in all.
    pub memory_mb: u64,
    /// Absent for a CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_capability: Option<ComputeCapability>,
}

/// Names to models, models to hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Routing {
    /// Other names, each with the model it stands for.
    pub aliases: BTreeMap<String, ModelId>,
    /// The hosts that may hold each model.
    pub nodes: BTreeMap<ModelId, Vec<NodeId>>,
}

/// Why a rendered placement cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlacementError {
    /// Not JSON, or not of this shape.
    #[error("it is no rendered placement: {0}; write it with `cortex placement render models.ncl`")]
    Malformed(String),
    /// Another program's form.
    #[error("it has version {found}, and this program reads version {VERSION}; render it again with this version of cortex")]
    Version {
        /// The one in the file.
        found: u64,
    },
    /// The content does not have the hash that it names.
    #[error("its content does not match its generation {named}: it was edited after it was rendered; edit models.ncl and render it again")]
    Edited {
        /// The one in the file.
        named: String,
    },
}

impl Placement {
    /// Puts the parts together and names their generation.
    pub fn new(
        hosts: BTreeMap<NodeId, HostPlacement>,
        models: BTreeMap<ModelId, ModelProfile>,
        routing: Routing,
        certificate: Certificate,
    ) -> Self {
        let mut placement = Self { version: VERSION, generation: String::new(), hosts, models, routing, certificate };
        placement.generation = placement.hash();
        placement
    }

    /// Reads what `render` wrote.
    ///
    /// # Errors
    /// Says why the text cannot be used.
    pub fn from_json(text: &str) -> Result<Self, PlacementError> {
        /// The part that every version has.
        #[derive(Deserialize)]
        struct Versioned {
            version: u64,
        }
        let malformed = |error: serde_json::Error| PlacementError::Malformed(error.to_string());
        let Versioned { version } = serde_json::from_str(text).map_err(malformed)?;
        if version != u64::from(VERSION) {
            return Err(PlacementError::Version { found: version });
        }
        let placement: Self = serde_json::from_str(text).map_err(malformed)?;
        match placement.hash() == placement.generation {
            true => Ok(placement),
            false => Err(PlacementError::Edited { named: placement.generation }),
        }
    }

    /// As [`Placement::from_json`] reads it, one field a line.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("maps have string keys and numbers are finite")
    }

    /// The part that routing needs: models, their nodes, aliases, and who stands in for whom.
    pub fn declared(&self) -> cortex_core::Placement {
        let placed =
            |profile: &ModelProfile| PlacedModel { spec: profile.spec.clone(), nodes: profile.placement.keys().cloned().collect() };
        let fallbacks = self.models.iter().map(|(id, profile)| (id.clone(), profile.fallbacks.clone())).collect();
        cortex_core::Placement::new(self.models.values().map(placed), self.routing.aliases.clone()).with_fallbacks(fallbacks)
    }

    /// What `host` may load and what it loads at start.
    pub fn host(&self, host: &NodeId) -> Option<&HostPlacement> {
        self.hosts.get(host)
    }

    fn hash(&self) -> String {
        let content = (self.version, &self.hosts, &self.models, &self.routing, &self.certificate);
        let bytes = serde_json::to_vec(&content).expect("maps have string keys and numbers are finite");
        format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&bytes))
    }
}

impl HostPlacement {
    /// MiB of device `index` that models may have.
    pub fn usable_mb(&self, index: usize) -> Option<u64> {
        self.devices.get(index).map(|device| device.memory_mb.saturating_sub(self.reserved_mb))
    }
}
