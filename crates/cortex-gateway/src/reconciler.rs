//! Carrying out what is decided. One task looks at the fleet and at who waits, asks the one pure decider, and starts each action in a
//! task of its own. It decides nothing itself, except that nothing more can be done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use cortex_core::{MemoryReport, ModelId, ModelStatus, NodeId};
use cortex_placement::{Action, Demand, Desired, ModelState, Moment, Observed, Reach, Step, decide};
use futures::future::join_all;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::desired::Memo;
use crate::fleet::{FleetCell, Hold, Node, Standing};
use crate::lifecycle::{Lifecycle, Tasks, Want};
use crate::metrics::Metrics;
use crate::nodes::{Nodes, Order, is_stale};
use crate::poller::Poller;
use crate::setup::Setup;

/// While something drains, its end is looked for this often.
const DRAIN_LOOK: Duration = Duration::from_millis(20);
/// A node that is asked what it has before anything is done has so long to answer; others are not kept waiting.
const LOOK_MAX: Duration = Duration::from_millis(500);
/// Ends of actions that were not taken in yet; more actions at once than this wait to tell theirs.
const ENDS_MAX: usize = 256;

/// The parts it works with.
pub(crate) struct Reconciler {
    pub(crate) setup: Arc<ArcSwap<Setup>>,
    pub(crate) fleet: Arc<FleetCell>,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) poller: Arc<Poller>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tasks: Tasks,
    /// What was decided last, for operators.
    pub(crate) plan: Arc<ArcSwap<Vec<Action>>>,
    /// What models take, as the last decision counted it, for operators.
    pub(crate) memory: Arc<ArcSwapOption<Counted>>,
    pub(crate) clock: Clock,
}

/// What the memory of models is counted by.
#[derive(Debug)]
pub(crate) struct Counted {
    desired: Arc<Desired>,
    learned_mb: BTreeMap<ModelId, u64>,
}

impl Counted {
    pub(crate) fn report(&self) -> Vec<MemoryReport> {
        self.desired.memory(&self.learned_mb)
    }
}

/// Milliseconds since the gateway started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> Moment {
        self.moment(Instant::now())
    }

    fn moment(self, at: Instant) -> Moment {
        Moment(u64::try_from(at.saturating_duration_since(self.0).as_millis()).unwrap_or(u64::MAX))
    }
}

/// How an action ended.
enum End {
    Loaded {
        node: NodeId,
        model: ModelId,
    },
    LoadFailed {
        node: NodeId,
        model: ModelId,
    },
    Unloaded {
        node: NodeId,
        model: ModelId,
    },
    /// Refused or failed; the next look tells how things are.
    Nothing {
        node: NodeId,
        model: ModelId,
    },
    Rebuilt {
        node: NodeId,
        unloads: u32,
    },
}

/// What is known between two steps.
struct State {
    tracker: crate::tracker::Tracker,
    desired: Memo,
    /// Actions under way: a model on a node, or the whole node.
    busy: BTreeSet<(NodeId, Option<ModelId>)>,
    ends: mpsc::Sender<End>,
}

impl Reconciler {
    /// Looks and acts for ever.
    pub(crate) async fn run(self) {
        let (sender, mut ends) = mpsc::channel(ENDS_MAX);
        let mut state =
            State { tracker: crate::tracker::Tracker::default(), desired: Memo::default(), busy: BTreeSet::new(), ends: sender };
        loop {
            let draining = self.step(&mut state).await;
            let pause = if draining { DRAIN_LOOK } else { self.setup.load().config.timeouts.reconcile_ms.duration() };
            tokio::select! {
                biased; // chance decides nothing: the same events are always answered the same way
                () = self.lifecycle.woken() => {}
                end = ends.recv() => end.into_iter().for_each(|end| self.take_in(&mut state, end)),
                () = tokio::time::sleep(pause) => {}
            }
            while let Ok(end) = ends.try_recv() {
                self.take_in(&mut state, end);
            }
        }
    }

    /// One look; true while something drains.
    async fn step(&self, state: &mut State) -> bool {
        self.ask_draining().await;
        self.lifecycle.settle();
        let mut seen = self.look(state);
        if seen.actions.iter().any(|action| !is_busy(&state.busy, action)) {
            // What is about to be done to a node is decided with its own latest words: another gateway may have been faster.
            self.ask_all().await;
            self.lifecycle.settle();
            seen = self.look(state);
        }
        self.plan.store(Arc::new(seen.actions.clone()));
        self.memory.store(Some(Arc::new(Counted { desired: Arc::clone(&seen.desired), learned_mb: seen.observed.learned_mb.clone() })));
        for action in &seen.actions {
            if !is_busy(&state.busy, action) {
                self.start(state, action, !seen.wants.is_empty());
            }
        }
        for want in seen.wants.iter().filter(|want| want.waiting > 0) {
            if let Some(reason) = self.why_hopeless(state, &seen, want) {
                tracing::warn!(model = %want.model, waiting = want.waiting, %reason, "given up");
                self.lifecycle.give_up(&want.model, &reason);
            }
        }
        for (node, cycles) in state.tracker.cycles() {
            self.metrics.node_cycles.with_label_values(&[node.as_str()]).set(i64::from(cycles));
        }
        seen.observed.nodes.iter().flat_map(|node| &node.models).any(|model| model.state == ModelState::Draining)
    }

    fn look(&self, state: &mut State) -> Seen {
        let (fleet, now) = (self.fleet.load(), self.clock.now());
        let desired = state.desired.desired(self.setup.load_full(), &fleet);
        let observed = state.tracker.observe(&fleet, now);
        let wants = self.lifecycle.wanted();
        let waited_for = |demand: Demand, want: &Want| demand.with(want.model.clone(), want.waiting, self.clock.moment(want.since));
        let demand = wants.iter().fold(Demand::none(), waited_for);
        let actions = decide(&desired, &observed, &demand, now);
        Seen { desired, observed, wants, actions, now }
    }

    async fn ask_all(&self) {
        let fleet = self.fleet.load_full();
        self.ask(fleet.nodes().iter().filter(|node| node.reach == crate::fleet::Reach::Ready)).await;
    }

    /// Only the node knows when the last request of another gateway has ended.
    async fn ask_draining(&self) {
        let fleet = self.fleet.load_full();
        let ours_ended = |node: &Node, model: &ModelId| node.model_load(model).is_none_or(|load| load.outstanding() == 0);
        self.ask(fleet.nodes().iter().filter(|node| node.draining().any(|model| ours_ended(node, model)))).await;
    }

    async fn ask(&self, nodes: impl Iterator<Item = &Arc<Node>>) {
        join_all(nodes.map(|node| tokio::time::timeout(LOOK_MAX, self.poller.poll(&node.id)))).await;
    }

    fn start(&self, state: &mut State, action: &Action, somebody_waits: bool) {
        tracing::info!(node = %action.node, generation = action.generation, reason = %action.reason, "{action}");
        let (node, nodes) = (action.node.clone(), Arc::clone(&self.nodes));
        let order = Order { devices: action.devices.clone(), generation: Some(action.generation) };
        match &action.step {
            Step::Load { model } if self.drains(&node, model) => {
                self.fleet.update(|fleet| fleet.model_draining(&node, model, false));
                self.lifecycle.wake();
            }
            Step::Load { model } => {
                nodes.begin_load(&node, model, &order);
                let (model, poller) = (model.clone(), Arc::clone(&self.poller));
                self.spawn(state, (node.clone(), Some(model.clone())), async move {
                    match nodes.load(&node, &model, &order).await {
                        Ok(_) => End::Loaded { node, model },
                        Err(error) if is_stale(&error) => {
                            poller.poll(&node).await;
                            End::Nothing { node, model }
                        }
                        Err(_) => End::LoadFailed { node, model },
                    }
                });
            }
            Step::Drain { model } => {
                self.fleet.update(|fleet| fleet.model_draining(&node, model, true));
                if somebody_waits {
                    state.tracker.swapped(&node, self.clock.now());
                }
            }
            Step::Unload { model } => {
                if somebody_waits && !self.drains(&node, model) {
                    state.tracker.swapped(&node, self.clock.now());
                }
                nodes.begin_unload(&node, model);
                let (model, poller) = (model.clone(), Arc::clone(&self.poller));
                self.spawn(state, (node.clone(), Some(model.clone())), async move {
                    let outcome = nodes.unload(&node, &model, &order).await;
                    poller.poll(&node).await; // how much memory is free now
                    if outcome.is_ok() { End::Unloaded { node, model } } else { End::Nothing { node, model } }
                });
            }
            Step::Defrag => {
                self.fleet.update(|fleet| fleet.held(&node, Some(Hold::Defrag)));
                let (fleet, poller) = (Arc::clone(&self.fleet), Arc::clone(&self.poller));
                self.spawn(state, (node.clone(), None), rebuild(node, fleet, nodes, poller));
            }
        }
    }

    fn spawn(&self, state: &mut State, what: (NodeId, Option<ModelId>), work: impl Future<Output = End> + Send + 'static) {
        state.busy.insert(what);
        let ends = state.ends.clone();
        let told = async move {
            let end = work.await;
            let _ = ends.send(end).await; // nobody listens once the gateway stops
        };
        self.tasks.tracker.spawn(self.tasks.kill.clone().run_until_cancelled_owned(told));
    }

    fn take_in(&self, state: &mut State, end: End) {
        let done = match end {
            End::Loaded { node, model } => {
                state.tracker.loaded(&node, &model);
                state.tracker.cycled(&node);
                (node, Some(model))
            }
            End::LoadFailed { node, model } => {
                state.tracker.load_failed(&node, &model, self.clock.now());
                (node, Some(model))
            }
            End::Unloaded { node, model } => {
                state.tracker.cycled(&node);
                (node, Some(model))
            }
            End::Nothing { node, model } => (node, Some(model)),
            End::Rebuilt { node, unloads } => {
                tracing::info!(%node, unloads, "memory rebuilt");
                state.tracker.rebuilt(&node);
                self.fleet.update(|fleet| fleet.held(&node, None));
                (node, None)
            }
        };
        state.busy.remove(&done);
    }

    /// In words, when nothing that is under way or can be decided will ever bring the model; `None` while there is hope.
    fn why_hopeless(&self, state: &State, seen: &Seen, want: &Want) -> Option<String> {
        let model = &want.model;
        let concerns = |action: &Action| action.model() == Some(model);
        let fleet = self.fleet.load();
        // Whatever ends on a node that may hold the model can change what fits there.
        let under_way = |node: &Node| state.busy.iter().any(|(busy, _)| *busy == node.id);
        let moving = fleet.replicas(model.as_str()).any(|(node, replica)| replica.standing == Standing::Loading || under_way(node));
        if moving || seen.actions.iter().any(concerns) {
            return None;
        }
        let reasons = self.failures(model);
        if !seen.could_ever(model) {
            let unfit = || format!("no node that may hold it has the memory and the devices for it; nodes: {}", self.states(model));
            return Some(if reasons.is_empty() { unfit() } else { reasons.join("; ") });
        }
        let spared = seen
            .observed
            .nodes
            .iter()
            .flat_map(|node| &node.models)
            .any(|other| other.id == *model && matches!(other.state, ModelState::Failed { .. }));
        if spared && !seen.could_with_failures(model) {
            return Some(reasons.join("; "));
        }
        let patience = self.setup.load().config.timeouts.place_ms_max.duration();
        (want.since.elapsed() >= patience).then(|| {
            format!("every device that could hold it has been in use for {patience:?} (place_ms_max); nodes: {}", self.states(model))
        })
    }

    fn failures(&self, model: &ModelId) -> Vec<String> {
        let fleet = self.fleet.load();
        let failure = |node: &Node| match &node.models.get(model)?.status {
            ModelStatus::Failed { reason } => Some(format!("{}: {reason}", node.id)),
            _ => None,
        };
        fleet.replicas(model.as_str()).filter_map(|(node, _)| failure(node)).collect()
    }

    fn states(&self, model: &ModelId) -> String {
        let fleet = self.fleet.load();
        let words: Vec<String> =
            fleet.replicas(model.as_str()).map(|(node, _)| format!("{} {}", node.id, crate::routing::state_words(&node.reach))).collect();
        words.join(", ")
    }

    fn drains(&self, node: &NodeId, model: &ModelId) -> bool {
        self.fleet.load().node(node).is_some_and(|node| node.drains(model))
    }
}

/// One look at everything, and what was decided.
struct Seen {
    desired: Arc<Desired>,
    observed: Observed,
    wants: Vec<Want>,
    actions: Vec<Action>,
    now: Moment,
}

/// Long enough that everything has been in memory, and out of use, for longer than any rule asks.
const LATER_MS: u64 = 7 * 24 * 3_600_000;

impl Seen {
    /// Whether the decider would find a place if nothing were in use and no load had failed.
    fn could_ever(&self, model: &ModelId) -> bool {
        let mut quiet = self.quiet();
        for node in &mut quiet.nodes {
            node.models.retain(|other| !matches!(other.state, ModelState::Failed { .. }));
        }
        self.would_act(&quiet, model)
    }

    /// The same, but nodes where its load failed a moment ago are spared.
    fn could_with_failures(&self, model: &ModelId) -> bool {
        self.would_act(&self.quiet(), model)
    }

    /// The fleet as it would be much later, if everything came to rest and failures were as fresh as now.
    fn quiet(&self) -> Observed {
        let mut quiet = self.observed.clone();
        for node in &mut quiet.nodes {
            if node.reach == Reach::Defragging {
                node.reach = Reach::Ready;
            }
            node.swaps_recent = 0;
            node.models.retain(|model| !matches!(model.state, ModelState::Draining | ModelState::Unloading));
            for model in &mut node.models {
                model.in_flight = 0;
                match model.state {
                    ModelState::Failed { .. } => model.since = model.since + LATER_MS,
                    _ => model.state = ModelState::Loaded,
                }
            }
        }
        quiet
    }

    /// Whether anything would be done for the model that is not done anyway.
    fn would_act(&self, observed: &Observed, model: &ModelId) -> bool {
        let now = self.now + LATER_MS;
        let decided = |demand: &Demand| decide(&self.desired, observed, demand, now);
        decided(&Demand::none().with(model.clone(), 1, now)) != decided(&Demand::none())
    }
}

fn is_busy(busy: &BTreeSet<(NodeId, Option<ModelId>)>, action: &Action) -> bool {
    busy.contains(&(action.node.clone(), None)) || busy.contains(&(action.node.clone(), action.model().cloned()))
}

/// Lets what is in flight end, unloads everything, and leaves it to the decider to load what is wanted again.
async fn rebuild(id: NodeId, fleet: Arc<FleetCell>, nodes: Arc<Nodes>, poller: Arc<Poller>) -> End {
    loop {
        let seen = fleet.load().node(&id).map(|node| (Arc::clone(&node.load), node.load.ended()));
        match seen {
            Some((load, ended)) if load.outstanding() > 0 => {
                let _ = tokio::time::timeout(Duration::from_secs(1), load.ended_since(ended)).await;
            }
            _ => break,
        }
    }
    let loaded: Vec<ModelId> = fleet
        .load()
        .node(&id)
        .map_or_else(Vec::new, |node| node.models.values().filter(|report| report.is_loaded()).map(|report| report.id.clone()).collect());
    let mut unloads = 0;
    for model in loaded {
        unloads += u32::from(nodes.unload(&id, &model, &Order::default()).await.is_ok());
    }
    poller.poll(&id).await;
    End::Rebuilt { node: id, unloads }
}
