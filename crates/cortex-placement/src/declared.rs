//! What `models.ncl` says, once it is evaluated: shape, ranges and single names are right by then.

use std::collections::BTreeMap;

use cortex_core::{Capability, ModelId, ModelSpec, NodeId};
use serde::Deserialize;

use crate::placement::{HostDevice, HostPlacement};
use crate::profile::{ComputeCapability, Footprint, FootprintOrigin, ModelProfile, Replicas, Requires, Residency, Spot};

/// The whole file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declared {
    /// The hosts by name.
    pub hosts: BTreeMap<NodeId, DeclaredHost>,
    /// The models by id.
    pub models: BTreeMap<ModelId, DeclaredModel>,
}

/// One host.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredHost {
    /// Where its neuron listens.
    pub endpoint: String,
    /// Its GPUs in the driver's order.
    #[serde(default)]
    pub gpus: Vec<DeclaredGpu>,
    /// MiB for models on a host without GPUs.
    #[serde(default)]
    pub memory_mb: Option<u64>,
    /// MiB of each device that no model may have.
    pub reserved_mb: u64,
    /// Which models are loaded first at start.
    #[serde(default)]
    pub preload_order: Vec<ModelId>,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredGpu {
    /// The product.
    pub name: String,
    /// MiB in all.
    pub vram_mb: u64,
    /// Absent: not known.
    #[serde(default)]
    pub compute_capability: Option<ComputeCapability>,
}

/// One model.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredModel {
    /// Hub id, folder or GGUF file.
    #[serde(default)]
    pub source: Option<String>,
    /// The hub's branch, tag or commit.
    #[serde(default)]
    pub revision: Option<String>,
    /// Quantization applied while loading.
    #[serde(default)]
    pub quant: Option<String>,
    /// How weights are held.
    #[serde(default)]
    pub dtype: Option<String>,
    /// Longest sequence in tokens.
    #[serde(default)]
    pub context: Option<usize>,
    /// Sequences of full length at a time.
    #[serde(default)]
    pub parallel: Option<usize>,
    /// Devices that one replica is split over.
    #[serde(default)]
    pub tensor_parallel: Option<usize>,
    /// MiB of one replica over all its devices.
    #[serde(default)]
    pub vram_mb: Option<u64>,
    /// GPUs that a host must have.
    #[serde(default)]
    pub min_devices: Option<usize>,
    /// MiB that each device used must have in all.
    #[serde(default)]
    pub min_device_vram_mb: Option<u64>,
    /// Of each device used.
    #[serde(default)]
    pub min_compute_capability: Option<ComputeCapability>,
    /// What it can be asked for.
    #[serde(default)]
    pub capabilities: Vec<Capability>,
    /// Other names.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Who may answer in its place.
    #[serde(default)]
    pub fallbacks: Vec<String>,
    /// How firmly it stays.
    pub residency: Residency,
    /// On how many hosts.
    #[serde(default)]
    pub replicas: Option<DeclaredReplicas>,
    /// Who yields.
    pub priority: i32,
    /// When it goes by itself.
    #[serde(default)]
    pub idle_unload_s: Option<u64>,
    /// On which hosts; empty: any.
    #[serde(default)]
    pub placement: BTreeMap<NodeId, Spot>,
}

/// A number, or bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum DeclaredReplicas {
    /// So many.
    Exactly(usize),
    /// At least and at most.
    Between {
        /// Held always.
        #[serde(default)]
        min: Option<usize>,
        /// Held at most.
        #[serde(default)]
        max: Option<usize>,
    },
}

impl DeclaredHost {
    /// Devices without models yet.
    pub(crate) fn place(&self) -> HostPlacement {
        let gpu =
            |gpu: &DeclaredGpu| HostDevice { name: gpu.name.clone(), memory_mb: gpu.vram_mb, compute_capability: gpu.compute_capability };
        let cpu = self.memory_mb.map(|memory_mb| HostDevice { name: "CPU".into(), memory_mb, compute_capability: None });
        let devices = if self.gpus.is_empty() { cpu.into_iter().collect() } else { self.gpus.iter().map(gpu).collect() };
        HostPlacement { endpoint: self.endpoint.clone(), devices, reserved_mb: self.reserved_mb, models: vec![], preload: vec![] }
    }
}

impl DeclaredModel {
    /// Declared memory, split evenly.
    pub(crate) fn declared_footprint(&self) -> Option<Footprint> {
        let devices = self.tensor_parallel.unwrap_or(1).max(1);
        self.vram_mb.map(|mb| Footprint { devices, device_mb: mb.div_ceil(devices as u64), origin: FootprintOrigin::Declared })
    }

    /// Everything but what the whole file decides: `fallbacks` are resolved by the caller.
    pub(crate) fn profile(&self, id: &ModelId, footprint: Option<Footprint>, fallbacks: Vec<ModelId>) -> ModelProfile {
        let spec = ModelSpec {
            source: self.source.clone(),
            revision: self.revision.clone(),
            dtype: self.dtype.clone(),
            quant: self.quant.clone(),
            tensor_parallel: self.tensor_parallel,
            context: self.context,
            parallel: self.parallel,
            ..ModelSpec::new(id.clone())
        };
        ModelProfile {
            spec,
            capabilities: self.capabilities.clone(),
            aliases: self.aliases.clone(),
            fallbacks,
            residency: self.residency,
            replicas: self.replicas(),
            priority: self.priority,
            idle_unload_s: self.idle_unload_s,
            footprint: self.declared_footprint().or(footprint),
            requires: Requires {
                devices_min: self.min_devices,
                device_memory_mb_min: self.min_device_vram_mb,
                compute_capability_min: self.min_compute_capability,
            },
            placement: self.placement.clone(),
        }
    }

    /// A model on demand has no replica that is held always; any other has at least one.
    fn replicas(&self) -> Replicas {
        let (min, max) = match self.replicas {
            None => (None, None),
            Some(DeclaredReplicas::Exactly(count)) => (Some(count), Some(count)),
            Some(DeclaredReplicas::Between { min, max }) => (min, max),
        };
        let preloads = self.placement.values().filter(|spot| spot.mode == crate::profile::Mode::Preload).count();
        let min = match self.residency {
            Residency::OnDemand => 0,
            Residency::Pinned | Residency::Resident => min.unwrap_or(1).max(1).max(preloads),
        };
        Replicas { min, max: max.unwrap_or(1).max(min).max(1) }
    }
}
