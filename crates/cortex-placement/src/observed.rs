//! The fleet as it is, and what is asked of it.

use std::collections::BTreeMap;

use cortex_core::{ModelId, NodeId};

use crate::moment::Moment;
use crate::profile::ComputeCapability;

/// Everything that was observed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// The nodes, known by name.
    pub nodes: Vec<ObservedNode>,
    /// The largest memory per device, in MiB, that each model was ever seen to take. It counts where it exceeds the declared one.
    pub learned_mb: BTreeMap<ModelId, u64>,
}

/// One node.
#[derive(Clone, Debug, PartialEq)]
pub struct ObservedNode {
    /// Its name.
    pub id: NodeId,
    /// Whether it can be acted on.
    pub reach: Reach,
    /// Its devices by index; empty before the first answer.
    pub devices: Vec<ObservedDevice>,
    /// The models that are in memory, on the way in or out, or failed to load. Any other is merely available.
    pub models: Vec<ObservedModel>,
    /// The newest generation that it has seen.
    pub generation: u64,
    /// Loads and unloads since its memory was new.
    pub cycles: u32,
    /// Models that made room for others on it lately; the caller chooses the window.
    pub swaps_recent: u32,
}

/// Whether a node can be acted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Answers and takes requests.
    Ready,
    /// Its memory is being rebuilt, by [`Step::Defrag`](crate::Step::Defrag); it will be back.
    Defragging,
    /// Drains or does not answer.
    Away {
        /// Since when.
        since: Moment,
    },
}

/// One device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedDevice {
    /// MiB in all.
    pub memory_mb: u64,
    /// MiB that something other than our models holds.
    pub foreign_mb: u64,
    /// Absent for a CPU.
    pub compute_capability: Option<ComputeCapability>,
    /// Refuses work until the daemon restarts.
    pub poisoned: bool,
}

/// One model on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedModel {
    /// The model.
    pub id: ModelId,
    /// Where it stands.
    pub state: ModelState,
    /// Since when.
    pub since: Moment,
    /// The devices that hold it.
    pub devices: Vec<usize>,
    /// MiB on each of them as measured; 0 while that is not known.
    pub device_mb: u64,
    /// Requests open on it.
    pub in_flight: usize,
    /// When a request last began or ended; when it was loaded, where there was none.
    pub last_used: Moment,
}

/// Where a model stands on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelState {
    /// On the way in.
    Loading,
    /// Serves.
    Loaded,
    /// In memory, but gets no new requests.
    Draining,
    /// On the way out.
    Unloading,
    /// Could not be loaded.
    Failed {
        /// How often in a row.
        failures: u32,
    },
}

/// Requests that wait for models that no node serves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Demand {
    /// Models that somebody waits for.
    pub models: BTreeMap<ModelId, ModelDemand>,
}

/// Who waits for one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelDemand {
    /// Requests waiting.
    pub waiting: usize,
    /// Since when the first of them waits.
    pub since: Moment,
}

impl ModelState {
    /// Whether it takes device memory.
    pub(crate) fn occupies(self) -> bool {
        !matches!(self, Self::Failed { .. })
    }

    /// Whether it serves, or will.
    pub(crate) fn is_live(self) -> bool {
        matches!(self, Self::Loading | Self::Loaded)
    }

    /// Whether its memory is on the way back.
    pub(crate) fn is_leaving(self) -> bool {
        matches!(self, Self::Draining | Self::Unloading)
    }
}
