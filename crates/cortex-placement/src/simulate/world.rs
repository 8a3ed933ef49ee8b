//! Mock nodes in virtual time: loads take a while and sometimes fail, requests begin and end, nodes go and come back.

use cortex_core::ModelId;

use super::random::Random;
use crate::action::{Action, Step};
use crate::moment::Moment;
use crate::observed::{ModelState, Observed, ObservedModel, ObservedNode, Reach};
use crate::placement::Placement;

/// How long things take.
const LOAD_MS: u64 = 4_000;
const UNLOAD_MS: u64 = 500;
const REQUEST_MS: u64 = 2_000;
const DEFRAG_MS: u64 = 3_000;
const AWAY_MS: u64 = 20_000;
/// Swaps within this are recent.
const SWAP_WINDOW_MS: u64 = 120_000;

/// The fleet as it is.
pub(super) struct World<'a> {
    placement: &'a Placement,
    pub(super) observed: Observed,
    nodes: Vec<Hidden>,
    random: Random,
    faults: bool,
    pub(super) loads: usize,
    pub(super) loads_failed: usize,
    pub(super) unloads: usize,
    pub(super) defrags: usize,
    pub(super) losses: usize,
}

/// What nobody can observe of a node.
#[derive(Clone, Default)]
struct Hidden {
    back_at: Option<Moment>,
    rebuilt_at: Option<Moment>,
    swaps: Vec<Moment>,
    /// When each request ends, with its model.
    requests: Vec<(Moment, ModelId)>,
    /// How often in a row each model failed here.
    failures: Vec<(ModelId, u32)>,
}

impl<'a> World<'a> {
    pub(super) fn new(placement: &'a Placement, observed: Observed, seed: u64, faults: bool) -> Self {
        let nodes = vec![Hidden::default(); observed.nodes.len()];
        Self { placement, observed, nodes, random: Random::new(seed), faults, loads: 0, loads_failed: 0, unloads: 0, defrags: 0, losses: 0 }
    }

    /// Faults end; what is broken comes back.
    pub(super) fn calm(&mut self) {
        self.faults = false;
    }

    /// Time passes until `now`.
    pub(super) fn advance(&mut self, now: Moment) {
        for at in 0..self.nodes.len() {
            self.advance_node(at, now);
        }
        if self.faults {
            let losses = (self.nodes.len() / 500).max(usize::from(self.random.one_in(4)));
            for _ in 0..losses {
                let at = self.random.below(self.nodes.len());
                self.lose(at, now);
            }
        }
    }

    fn advance_node(&mut self, at: usize, now: Moment) {
        let (node, hidden) = (&mut self.observed.nodes[at], &mut self.nodes[at]);
        if hidden.back_at.is_some_and(|back| now >= back) {
            hidden.back_at = None;
            node.reach = Reach::Ready;
        }
        if matches!(node.reach, Reach::Away { .. }) {
            return;
        }
        let ended: Vec<ModelId> = hidden.requests.extract_if(.., |(end, _)| *end <= now).map(|(_, model)| model).collect();
        for model in ended {
            if let Some(held) = node.models.iter_mut().find(|held| held.id == model) {
                held.in_flight -= 1;
                held.last_used = now;
            }
        }
        node.models.retain(|held| !(held.state == ModelState::Unloading && now >= held.since + UNLOAD_MS));
        for held in node.models.iter_mut().filter(|held| held.state == ModelState::Loading && now >= held.since + LOAD_MS) {
            let fails = self.faults && self.random.one_in(50);
            let failures = failures_of(hidden, &held.id);
            *failures = if fails { *failures + 1 } else { 0 };
            held.state = if fails { ModelState::Failed { failures: *failures } } else { ModelState::Loaded };
            held.since = now;
            held.last_used = now;
            self.loads_failed += usize::from(fails);
        }
        hidden.swaps.retain(|swap| now.ms_since(*swap) < SWAP_WINDOW_MS);
        node.swaps_recent = hidden.swaps.len() as u32;
        if node.reach == Reach::Defragging && hidden.requests.is_empty() {
            node.models.clear();
            let rebuilt = *hidden.rebuilt_at.get_or_insert(now + DEFRAG_MS);
            if now >= rebuilt {
                hidden.rebuilt_at = None;
                node.cycles = 0;
                node.reach = Reach::Ready;
            }
        }
    }

    /// Half of those that go were restarted and come back with nothing in memory.
    fn lose(&mut self, at: usize, now: Moment) {
        let (node, hidden) = (&mut self.observed.nodes[at], &mut self.nodes[at]);
        if node.reach != Reach::Ready {
            return;
        }
        self.losses += 1;
        node.reach = Reach::Away { since: now };
        hidden.back_at = Some(now + AWAY_MS);
        hidden.requests.clear();
        node.models.iter_mut().for_each(|held| held.in_flight = 0);
        if self.random.one_in(2) {
            node.models.clear();
            node.cycles = 0;
        }
    }

    /// A request for `model` begins on the replica with the least to do; `false` where none serves.
    pub(super) fn serve(&mut self, model: &ModelId, holders: &[usize], now: Moment) -> bool {
        let open = |at: &usize| serving(&self.observed.nodes[*at], model).map(|held| held.in_flight);
        let Some(at) = holders.iter().copied().filter(|at| open(at).is_some()).min_by_key(|at| open(at)) else { return false };
        if let Some(held) = self.observed.nodes[at].models.iter_mut().find(|held| held.id == *model) {
            held.in_flight += 1;
            held.last_used = now;
            self.nodes[at].requests.push((now + REQUEST_MS, model.clone()));
        }
        true
    }

    /// Carries `action` out, after it has been seen to break no rule.
    ///
    /// # Errors
    /// The rule it breaks.
    pub(super) fn carry_out(&mut self, at: usize, action: &Action, now: Moment) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("{action} ({}): {what}", action.reason));
        let (node, hidden) = (&mut self.observed.nodes[at], &mut self.nodes[at]);
        if node.reach != Reach::Ready {
            return wrong("the node is not ready");
        }
        if action.generation <= node.generation {
            return wrong("its generation is stale");
        }
        node.generation = action.generation;
        let held = action.model().and_then(|model| node.models.iter().position(|held| held.id == *model));
        match (&action.step, held) {
            (Step::Load { .. }, Some(held)) if node.models[held].state == ModelState::Draining => {
                node.models[held].state = ModelState::Loaded;
            }
            (Step::Load { model }, held) => {
                if held.is_some_and(|held| !matches!(node.models[held].state, ModelState::Failed { .. })) {
                    return wrong("it is there already");
                }
                node.models.retain(|held| held.id != *model);
                let (id, devices) = (model.clone(), action.devices.clone());
                node.models.push(ObservedModel {
                    id,
                    state: ModelState::Loading,
                    since: now,
                    devices,
                    device_mb: 0,
                    in_flight: 0,
                    last_used: now,
                });
                node.cycles += 1;
                self.loads += 1;
                if let Some(index) = over_committed(self.placement, node) {
                    return wrong(&format!("device {index} is over-committed"));
                }
            }
            (Step::Drain { .. }, Some(held)) if node.models[held].state == ModelState::Loaded => {
                node.models[held].state = ModelState::Draining;
            }
            (Step::Unload { .. }, Some(held)) => {
                let held = &mut node.models[held];
                if held.in_flight > 0 {
                    return wrong("requests are in flight");
                }
                if !matches!(held.state, ModelState::Loaded | ModelState::Draining) {
                    return wrong("it is not in memory");
                }
                held.state = ModelState::Unloading;
                held.since = now;
                node.cycles += 1;
                hidden.swaps.push(now);
                self.unloads += 1;
            }
            (Step::Defrag, _) => {
                node.reach = Reach::Defragging;
                self.defrags += 1;
            }
            (Step::Drain { .. } | Step::Unload { .. }, _) => return wrong("it is not there"),
        }
        Ok(())
    }
}

fn failures_of<'h>(hidden: &'h mut Hidden, model: &ModelId) -> &'h mut u32 {
    let at = match hidden.failures.iter().position(|(failed, _)| failed == model) {
        Some(at) => at,
        None => {
            hidden.failures.push((model.clone(), 0));
            hidden.failures.len() - 1
        }
    };
    &mut hidden.failures[at].1
}

fn serving<'n>(node: &'n ObservedNode, model: &ModelId) -> Option<&'n ObservedModel> {
    let ready = node.reach == Reach::Ready;
    node.models.iter().find(|held| ready && held.id == *model && held.state == ModelState::Loaded)
}

/// A device that holds more than it may.
fn over_committed(placement: &Placement, node: &ObservedNode) -> Option<usize> {
    let host = placement.hosts.get(&node.id)?;
    (0..host.devices.len()).find(|index| {
        let on_it = node.models.iter().filter(|held| held.devices.contains(index) && !matches!(held.state, ModelState::Failed { .. }));
        let sizes = on_it.filter_map(|held| placement.models.get(&held.id)?.footprint).map(|footprint| footprint.device_mb);
        sizes.sum::<u64>() > host.usable_mb(*index).unwrap_or(0)
    })
}
