//! What the decider needs to know beyond the fleet of this moment: since when things are as they are, and what was learned. All of it is
//! rebuilt by looking; a gateway that restarts merely starts counting again.

use std::collections::{BTreeMap, HashMap, VecDeque};

use cortex_core::{DeviceInfo, ModelId, ModelReport, NodeId};
use cortex_placement::{ComputeCapability, ModelState, Moment, Observed, ObservedDevice, ObservedModel, ObservedNode, Reach};

use crate::fleet::{self, Fleet, Hold, Node, Standing};

/// Models that make room for others within this time of each other are contending.
const SWAPS_WINDOW_MS: u64 = 120_000;

/// The memory of one gateway.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    nodes: HashMap<NodeId, NodeMemory>,
    learned_mb: BTreeMap<ModelId, u64>,
}

#[derive(Debug, Default)]
struct NodeMemory {
    boot_id: Option<String>,
    away_since: Option<Moment>,
    cycles: u32,
    swaps: VecDeque<Moment>,
    /// MiB on each device that are not ours, when that could be told last.
    foreign_mb: Vec<u64>,
    models: HashMap<ModelId, ModelMemory>,
}

#[derive(Clone, Copy, Debug)]
struct ModelMemory {
    state: Standing,
    since: Moment,
    last_used: Moment,
    ended: u64,
    failures: u32,
}

impl Tracker {
    /// A load or an unload ended on the node.
    pub(crate) fn cycled(&mut self, node: &NodeId) {
        self.node(node).cycles += 1;
    }

    /// A model is about to make room for another one there.
    pub(crate) fn swapped(&mut self, node: &NodeId, now: Moment) {
        self.node(node).swaps.push_back(now);
    }

    /// The node's memory is new.
    pub(crate) fn rebuilt(&mut self, node: &NodeId) {
        self.node(node).cycles = 0;
    }

    /// A load failed; each in a row makes the node be spared longer.
    pub(crate) fn load_failed(&mut self, node: &NodeId, model: &ModelId, now: Moment) {
        let fresh = ModelMemory { state: Standing::Failed, since: now, last_used: now, ended: 0, failures: 0 };
        let memory = self.node(node).models.entry(model.clone()).or_insert(fresh);
        (memory.state, memory.since) = (Standing::Failed, now);
        memory.failures += 1;
    }

    /// A load went well.
    pub(crate) fn loaded(&mut self, node: &NodeId, model: &ModelId) {
        if let Some(memory) = self.node(node).models.get_mut(model) {
            memory.failures = 0;
        }
    }

    /// Loads and unloads of each node since its memory was new.
    pub(crate) fn cycles(&self) -> impl Iterator<Item = (&NodeId, u32)> {
        self.nodes.iter().map(|(node, memory)| (node, memory.cycles))
    }

    /// The fleet as the decider sees it.
    pub(crate) fn observe(&mut self, fleet: &Fleet, now: Moment) -> Observed {
        let nodes = fleet.nodes().iter().map(|node| self.observe_node(node, now)).collect();
        Observed { nodes, learned_mb: self.learned_mb.clone() }
    }

    fn observe_node(&mut self, node: &Node, now: Moment) -> ObservedNode {
        let memory = self.nodes.entry(node.id.clone()).or_default();
        let boot_id = node.boot_id().map(str::to_owned);
        if memory.boot_id != boot_id {
            *memory = NodeMemory { boot_id, away_since: memory.away_since, ..NodeMemory::default() };
        }
        while memory.swaps.front().is_some_and(|swap| now.ms_since(*swap) > SWAPS_WINDOW_MS) {
            memory.swaps.pop_front();
        }
        let reach = match node.reach {
            fleet::Reach::Ready => Reach::Ready,
            _ if node.hold == Some(Hold::Defrag) => Reach::Defragging,
            _ => Reach::Away { since: memory.away_since.unwrap_or(now) },
        };
        memory.away_since = if let Reach::Away { since } = reach { Some(since) } else { None };
        memory.models.retain(|model, _| node.models.contains_key(model));
        let infos = node.facts.as_ref().map_or(&[][..], |facts| &facts.discovery.devices);
        let models: Vec<ObservedModel> =
            node.models.values().filter_map(|report| observe_model(memory, node, report, infos, now)).collect();
        for model in models.iter().filter(|model| model.state == ModelState::Loaded && model.device_mb > 0) {
            let learned = self.learned_mb.entry(model.id.clone()).or_default();
            *learned = model.device_mb.max(*learned);
        }
        ObservedNode {
            id: node.id.clone(),
            reach,
            devices: devices(&mut memory.foreign_mb, node, &models),
            generation: node.models.values().map(|report| report.generation).max().unwrap_or(0),
            cycles: memory.cycles,
            swaps_recent: u32::try_from(memory.swaps.len()).unwrap_or(u32::MAX),
            models,
        }
    }

    fn node(&mut self, node: &NodeId) -> &mut NodeMemory {
        self.nodes.entry(node.clone()).or_default()
    }
}

/// `None` for a model that is merely available.
fn observe_model(memory: &mut NodeMemory, node: &Node, report: &ModelReport, infos: &[DeviceInfo], now: Moment) -> Option<ObservedModel> {
    let standing = Standing::from(&report.status);
    let load = node.model_load(&report.id);
    let ended = load.map_or(0, |load| load.ended());
    let fresh = ModelMemory { state: standing, since: now, last_used: now, ended, failures: 0 };
    let seen = memory.models.entry(report.id.clone()).or_insert(fresh);
    if seen.state != standing {
        (seen.state, seen.since) = (standing, now);
        if standing == Standing::Loaded {
            (seen.last_used, seen.failures) = (now, 0);
        }
    }
    let figures = node.facts.as_ref().and_then(|facts| facts.health.models.iter().find(|figures| figures.id == report.id));
    let theirs = figures.map_or(0, |figures| (figures.running + figures.waiting) as usize);
    let in_flight = load.map_or(0, |load| load.outstanding()).max(theirs);
    if in_flight > 0 || seen.ended != ended {
        (seen.last_used, seen.ended) = (now, ended);
    }
    let state = match standing {
        Standing::Loaded if node.drains(&report.id) => ModelState::Draining,
        Standing::Loaded => ModelState::Loaded,
        Standing::Loading => ModelState::Loading,
        Standing::Unloading => ModelState::Unloading,
        Standing::Failed => ModelState::Failed { failures: seen.failures.max(1) },
        Standing::Available => return None,
    };
    let named: Vec<usize> = report.devices.iter().filter_map(|name| infos.iter().position(|info| info.name == *name)).collect();
    // A load that does not tell its devices yet takes the first.
    let devices = if named.is_empty() && !infos.is_empty() { vec![0] } else { named };
    let device_mb = (report.memory_used_bytes / devices.len().max(1) as u64).div_ceil(1 << 20);
    let ModelMemory { since, last_used, .. } = *seen;
    Some(ObservedModel { id: report.id.clone(), state, since, devices, device_mb, in_flight, last_used })
}

fn devices(foreign_mb: &mut Vec<u64>, node: &Node, models: &[ObservedModel]) -> Vec<ObservedDevice> {
    let Some(facts) = &node.facts else { return Vec::new() };
    foreign_mb.resize(facts.discovery.devices.len(), 0);
    let mut device = |(index, info): (usize, &DeviceInfo)| {
        let health = facts.health.devices.iter().find(|device| device.name == info.name);
        let occupied = |model: &&ObservedModel| model.devices.contains(&index) && !matches!(model.state, ModelState::Failed { .. });
        let ours_mb: u64 = models.iter().filter(occupied).map(|model| model.device_mb).sum();
        // While something comes or goes, what is not ours cannot be told from what is on its way.
        let still = models.iter().filter(occupied).all(|model| matches!(model.state, ModelState::Loaded | ModelState::Draining));
        let used_mb = health.map_or(0, |device| device.memory_used_bytes >> 20);
        if still {
            foreign_mb[index] = used_mb.saturating_sub(ours_mb);
        }
        ObservedDevice {
            memory_mb: info.memory_total_bytes >> 20,
            foreign_mb: foreign_mb[index],
            compute_capability: info.compute_capability.as_deref().and_then(ComputeCapability::parse),
            poisoned: health.is_some_and(|device| device.poisoned.is_some()),
        }
    };
    facts.discovery.devices.iter().enumerate().map(&mut device).collect()
}
