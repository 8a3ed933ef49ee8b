//! What the gateway knows of its nodes at one moment, as a value: an update is a pure function to the next value.

mod load;
mod report;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use cortex_core::config::{Endpoint, NeuronEntry};
use cortex_core::{Discovery, Health, ModelId, ModelReport, ModelStatus, NodeId, Placement};
use tokio::sync::Notify;
use xxhash_rust::xxh3::xxh3_64;

pub(crate) use load::{Load, LoadGuard};

/// The nodes, and which of them can serve each model.
#[derive(Clone, Debug)]
pub(crate) struct Fleet {
    nodes: Vec<Arc<Node>>,
    replicas: Arc<HashMap<ModelId, Vec<Replica>>>,
    placement: Arc<Placement>,
}

/// One node.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) endpoint: Endpoint,
    pub(crate) reach: Reach,
    pub(crate) facts: Option<Arc<Facts>>,
    pub(crate) models: BTreeMap<ModelId, ModelReport>,
    /// Requests open on the node, of all models.
    pub(crate) load: Arc<Load>,
    model_loads: BTreeMap<ModelId, Arc<Load>>,
    /// What the node draws lots with: a hash of its name.
    lot: u64,
    poll_failures: usize,
    /// Ends the pause of the node's poller.
    poll: Arc<Notify>,
    /// Requests that failed there in a row, although it answers polls.
    failures: Arc<AtomicUsize>,
    /// Models that get no new requests there, although they are in memory.
    draining: BTreeSet<ModelId>,
    /// Why the node gets nothing new, although it would take it.
    pub(crate) hold: Option<Hold>,
    flapping: Flapping,
    /// Loads and unloads applied so far. What a poll that began before the last of them says about models is stale.
    pub(crate) actions: u64,
}

/// A node that was out lately has to answer more probes before it is trusted again: twice as many after each time.
#[derive(Clone, Copy, Debug, Default)]
struct Flapping {
    ejections: u32,
    last: Option<Instant>,
    probes_needed: u32,
}

impl Flapping {
    /// After this long without trouble all is forgotten.
    const FORGIVEN_AFTER: Duration = Duration::from_secs(60);
    const DOUBLINGS_MAX: u32 = 5;

    fn ejected(&mut self, now: Instant) {
        let lately = self.last.is_some_and(|last| now.saturating_duration_since(last) < Self::FORGIVEN_AFTER);
        self.ejections = if lately { self.ejections + 1 } else { 1 };
        self.last = Some(now);
        self.probe_failed();
    }

    fn probe_failed(&mut self) {
        self.probes_needed = 1 << self.ejections.saturating_sub(1).min(Self::DOUBLINGS_MAX);
    }

    /// Whether this good probe was the last one needed.
    fn probed(&mut self) -> bool {
        self.probes_needed = self.probes_needed.saturating_sub(1);
        self.probes_needed == 0
    }
}

/// Whether a node gets requests.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reach {
    Unknown,
    Ready,
    Draining,
    Ejected { reason: String, since: Instant },
}

/// Who keeps a node from getting requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// An operator, until the same says otherwise.
    Operator,
    /// Its memory is being rebuilt.
    Defrag,
}

/// What a node said last.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) discovery: Discovery,
    pub(crate) health: Health,
    pub(crate) seen: Instant,
    pub(crate) tokens_per_second: Option<f64>,
}

/// One poll's answers.
#[derive(Clone, Debug)]
pub(crate) struct Observation {
    pub(crate) discovery: Discovery,
    pub(crate) health: Health,
    pub(crate) models: Vec<ModelReport>,
    /// [`Node::actions`] when the poll began.
    pub(crate) actions_before: u64,
    pub(crate) at: Instant,
}

/// One model on one node.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    node: usize,
    pub(crate) standing: Standing,
    /// The node's, kept here because a decision looks at those of all replicas.
    pub(crate) lot: u64,
    /// Requests open on the node for this model.
    pub(crate) load: Arc<Load>,
}

/// The replicas of one model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replicas<'a> {
    nodes: &'a [Arc<Node>],
    pub(crate) all: &'a [Replica],
}

impl<'a> Replicas<'a> {
    pub(crate) fn at(self, index: usize) -> (&'a Arc<Node>, &'a Replica) {
        let replica = &self.all[index];
        (&self.nodes[replica.node], replica)
    }
}

/// How near a model is to serving; the nearest comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    Loaded,
    Loading,
    Available,
    Failed,
    Unloading,
}

impl From<&ModelStatus> for Standing {
    fn from(status: &ModelStatus) -> Self {
        match status {
            ModelStatus::Loaded => Self::Loaded,
            ModelStatus::Loading { .. } => Self::Loading,
            ModelStatus::Available => Self::Available,
            ModelStatus::Failed { .. } => Self::Failed,
            ModelStatus::Unloading => Self::Unloading,
        }
    }
}

impl Fleet {
    /// Nodes that nobody has heard of yet.
    pub(crate) fn new(entries: &[NeuronEntry], placement: Arc<Placement>) -> Self {
        let nodes = entries.iter().map(|entry| Arc::new(Node::new(entry))).collect();
        Self { nodes, replicas: Arc::default(), placement }.reindexed()
    }

    /// The same fleet under another configuration: nodes that stay keep everything that is known of them.
    pub(crate) fn reconfigured(&self, entries: &[NeuronEntry], placement: Arc<Placement>) -> Self {
        let kept = |entry: &NeuronEntry| self.node(&entry.name).filter(|node| node.endpoint == entry.endpoint).map(Arc::clone);
        let nodes = entries.iter().map(|entry| kept(entry).unwrap_or_else(|| Arc::new(Node::new(entry)))).collect();
        Self { nodes, replicas: Arc::default(), placement }.reindexed()
    }

    pub(crate) fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    pub(crate) fn node(&self, id: &NodeId) -> Option<&Arc<Node>> {
        self.nodes.iter().find(|node| node.id == *id)
    }

    pub(crate) fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Where `model` is or can be loaded; empty for a model that nobody knows.
    pub(crate) fn replicas(&self, model: &str) -> impl ExactSizeIterator<Item = (&Arc<Node>, &Replica)> {
        let replicas = self.replicas_of(model);
        (0..replicas.all.len()).map(move |index| replicas.at(index))
    }

    /// The same, by number.
    pub(crate) fn replicas_of(&self, model: &str) -> Replicas<'_> {
        Replicas { nodes: &self.nodes, all: self.replicas.get(model).map_or(&[], Vec::as_slice) }
    }

    /// Every model that some node can serve, in no order.
    pub(crate) fn models(&self) -> impl Iterator<Item = &ModelId> {
        self.replicas.keys()
    }

    /// The node answered a poll.
    pub(crate) fn observed(&self, id: &NodeId, observation: &Observation) -> Self {
        self.with_node(id, |node| node.observe(observation))
    }

    /// The node did not answer a poll in time, or with nonsense; after `failures_max` of these in a row it is ejected.
    pub(crate) fn poll_failed(&self, id: &NodeId, reason: &str, failures_max: usize, now: Instant) -> Self {
        self.with_node(id, |node| {
            node.poll_failures += 1;
            if node.poll_failures >= failures_max {
                node.eject(reason, now);
            }
        })
    }

    /// Nobody listens there.
    pub(crate) fn ejected(&self, id: &NodeId, reason: &str, now: Instant) -> Self {
        self.with_node(id, |node| node.eject(reason, now))
    }

    /// The node fails its requests, though it may answer polls. It stays while half of the nodes are out already: then the fault is
    /// more likely with the requests, or with us.
    pub(crate) fn failing(&self, id: &NodeId, reason: &str, now: Instant) -> Self {
        let out = self.nodes.iter().filter(|node| matches!(node.reach, Reach::Ejected { .. })).count();
        if 2 * (out + 1) > self.nodes.len() { self.clone() } else { self.ejected(id, reason, now) }
    }

    /// The node said that it takes nothing new; the next poll tells more.
    pub(crate) fn draining(&self, id: &NodeId) -> Self {
        self.with_node(id, |node| node.reach = Reach::Draining)
    }

    /// An action's answer says more than the poll before it.
    pub(crate) fn model_reported(&self, id: &NodeId, report: &ModelReport) -> Self {
        self.with_node(id, |node| node.set_model(report.clone()))
    }

    /// An action changed where `model` stands on the node.
    pub(crate) fn model_standing(&self, id: &NodeId, model: &ModelId, status: &ModelStatus) -> Self {
        self.with_node(id, |node| {
            let mut report = node.models.get(model).cloned().unwrap_or_else(|| unreported(model));
            report.status = status.clone();
            node.set_model(report);
        })
    }

    /// The node was told to load `model`, on these of its devices where they were chosen.
    pub(crate) fn model_loading(&self, id: &NodeId, model: &ModelId, devices: &[usize]) -> Self {
        self.with_node(id, |node| {
            let mut report = node.models.get(model).cloned().unwrap_or_else(|| unreported(model));
            report.status = ModelStatus::Loading { percent: 0 };
            let all = node.facts.as_ref().map_or(&[][..], |facts| &facts.discovery.devices);
            report.devices = devices.iter().filter_map(|index| Some(all.get(*index)?.name.clone())).collect();
            node.set_model(report);
        })
    }

    /// The model gets no new requests on the node, or gets them again.
    pub(crate) fn model_draining(&self, id: &NodeId, model: &ModelId, drains: bool) -> Self {
        self.with_node(id, |node| {
            if drains {
                node.draining.insert(model.clone());
            } else {
                node.draining.remove(model);
            }
        })
    }

    /// The node gets nothing new while there is a hold.
    pub(crate) fn held(&self, id: &NodeId, hold: Option<Hold>) -> Self {
        self.with_node(id, |node| {
            node.hold = hold;
            let ready = node.facts.as_ref().is_some_and(|facts| facts.health.ready);
            match node.reach {
                Reach::Ready if hold.is_some() => node.reach = Reach::Draining,
                Reach::Draining if hold.is_none() && ready => node.reach = Reach::Ready,
                _ => {}
            }
        })
    }

    fn with_node(&self, id: &NodeId, change: impl FnOnce(&mut Node)) -> Self {
        let mut next = self.clone();
        let Some(slot) = next.nodes.iter_mut().find(|node| node.id == *id) else { return next };
        let mut node = Node::clone(slot);
        change(&mut node);
        let same_models = slot.standings().eq(node.standings());
        *slot = Arc::new(node);
        if same_models { next } else { next.reindexed() }
    }

    /// Rebuilds the index from model to nodes; needed only when a model's standing changed somewhere.
    fn reindexed(mut self) -> Self {
        let mut replicas: HashMap<ModelId, Vec<Replica>> = HashMap::new();
        for (index, slot) in self.nodes.iter_mut().enumerate() {
            let placed = self.placement.models().filter(|placed| self.placement.places(&placed.spec.model_id, &slot.id));
            let unlisted =
                placed.map(|placed| (&placed.spec.model_id, Standing::Available)).filter(|(model, _)| !slot.models.contains_key(*model));
            let standings: Vec<_> = slot.standings().chain(unlisted).map(|(model, standing)| (model.clone(), standing)).collect();
            for (model, standing) in standings {
                if standing > Standing::Loading && self.placement.forbids(&model, &slot.id) {
                    continue;
                }
                let load = match slot.model_loads.get(&model) {
                    Some(load) => Arc::clone(load),
                    None => Arc::clone(Arc::make_mut(slot).model_loads.entry(model.clone()).or_default()),
                };
                replicas.entry(model).or_default().push(Replica { node: index, standing, lot: slot.lot, load });
            }
        }
        self.replicas = Arc::new(replicas);
        self
    }
}

impl Node {
    fn new(entry: &NeuronEntry) -> Self {
        Self {
            id: entry.name.clone(),
            endpoint: entry.endpoint.clone(),
            reach: Reach::Unknown,
            facts: None,
            models: BTreeMap::new(),
            load: Arc::default(),
            model_loads: BTreeMap::new(),
            lot: xxh3_64(entry.name.as_str().as_bytes()),
            poll_failures: 0,
            poll: Arc::default(),
            failures: Arc::default(),
            draining: BTreeSet::new(),
            hold: None,
            flapping: Flapping::default(),
            actions: 0,
        }
    }

    /// Resolves when somebody doubts what is known of the node; the same one as long as the node is configured.
    pub(crate) fn poll_wanted(&self) -> &Arc<Notify> {
        &self.poll
    }

    /// The id that the node drew when it started.
    pub(crate) fn boot_id(&self) -> Option<&str> {
        self.facts.as_ref().map(|facts| facts.discovery.boot_id.as_str())
    }

    /// A request failed there; how many in a row that makes.
    pub(crate) fn fails(&self) -> usize {
        self.failures.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A request went well there.
    pub(crate) fn serves(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    pub(crate) fn standings(&self) -> impl Iterator<Item = (&ModelId, Standing)> {
        self.models.iter().map(|(id, report)| match Standing::from(&report.status) {
            Standing::Loaded if self.draining.contains(id) => (id, Standing::Unloading),
            standing => (id, standing),
        })
    }

    /// Whether the model is in memory but gets no new requests.
    pub(crate) fn drains(&self, model: &ModelId) -> bool {
        self.draining.contains(model)
    }

    /// Models that get no new requests there.
    pub(crate) fn draining(&self) -> impl Iterator<Item = &ModelId> {
        self.draining.iter()
    }

    /// Requests that this gateway has open on the model there, and how many have ended.
    pub(crate) fn model_load(&self, model: &ModelId) -> Option<&Arc<Load>> {
        self.model_loads.get(model)
    }

    fn observe(&mut self, observation: &Observation) {
        let same_boot = self.boot_id() == Some(&observation.discovery.boot_id);
        let before = self.facts.as_ref().filter(|_| same_boot);
        // What was asked before an action ended tells neither the models nor the memory after it.
        let is_fresh = observation.actions_before == self.actions || !same_boot;
        let health = before.filter(|_| !is_fresh).map_or(&observation.health, |before| &before.health).clone();
        self.facts = Some(Arc::new(Facts {
            tokens_per_second: before.and_then(|before| rate(before, observation)),
            discovery: observation.discovery.clone(),
            health,
            seen: observation.at,
        }));
        self.poll_failures = 0;
        let out = matches!(self.reach, Reach::Ejected { .. });
        if !out || self.flapping.probed() {
            self.reach = if observation.health.ready && self.hold.is_none() { Reach::Ready } else { Reach::Draining };
            if out {
                self.failures = Arc::default();
            }
        }
        if is_fresh {
            self.models = observation.models.iter().map(|report| (report.id.clone(), report.clone())).collect();
            let models = &self.models;
            self.draining.retain(|model| models.get(model).is_some_and(ModelReport::is_loaded));
        }
    }

    fn eject(&mut self, why: &str, now: Instant) {
        match &mut self.reach {
            Reach::Ejected { reason, .. } => {
                why.clone_into(reason);
                self.flapping.probe_failed();
            }
            reach => {
                *reach = Reach::Ejected { reason: why.to_owned(), since: now };
                self.flapping.ejected(now);
            }
        }
    }

    fn set_model(&mut self, report: ModelReport) {
        self.actions += 1;
        if !report.is_loaded() {
            self.draining.remove(&report.id);
        }
        self.models.insert(report.id.clone(), report);
    }
}

/// Tokens per second generated between two observations of the same boot.
fn rate(before: &Facts, now: &Observation) -> Option<f64> {
    let total = |health: &Health| health.models.iter().map(|model| model.generated_tokens_total).sum::<u64>();
    let seconds = now.at.checked_duration_since(before.seen)?.as_secs_f64();
    // An unload takes its model's count away.
    let tokens = total(&now.health).saturating_sub(total(&before.health));
    (seconds > 0.0).then(|| tokens as f64 / seconds)
}

fn unreported(model: &ModelId) -> ModelReport {
    ModelReport {
        id: model.clone(),
        status: ModelStatus::Available,
        capabilities: Vec::new(),
        architecture: None,
        parameters: None,
        context: None,
        devices: Vec::new(),
        memory_used_bytes: 0,
        generation: 0,
        load_s: None,
    }
}

/// The current [`Fleet`]: readers take a snapshot without a lock, writers replace it.
#[derive(Debug)]
pub(crate) struct FleetCell {
    fleet: ArcSwap<Fleet>,
}

impl FleetCell {
    pub(crate) fn new(fleet: Fleet) -> Self {
        Self { fleet: ArcSwap::from_pointee(fleet) }
    }

    pub(crate) fn load(&self) -> Guard<Arc<Fleet>> {
        self.fleet.load()
    }

    /// The same for longer use.
    pub(crate) fn load_full(&self) -> Arc<Fleet> {
        self.fleet.load_full()
    }

    /// Replaces the fleet; `change` runs again when another writer was faster.
    pub(crate) fn update(&self, change: impl Fn(&Fleet) -> Fleet) {
        self.fleet.rcu(|fleet| change(fleet));
    }

    /// Takes `id` out at once and has it probed.
    pub(crate) fn eject(&self, id: &NodeId, reason: &str) {
        self.update(|fleet| fleet.ejected(id, reason, crate::clock::now()));
        self.poll_soon(id);
    }

    /// Ends the poller's pause.
    pub(crate) fn poll_soon(&self, id: &NodeId) {
        if let Some(node) = self.load().node(id) {
            node.poll.notify_one();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
