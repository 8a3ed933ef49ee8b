//! The one function that decides what the fleet does next. The reconciler, `plan`, `explain` and the simulator call it.
//!
//! It looks at states, not at events: called again with the same arguments it says the same, and whatever it says has the fleet one
//! step nearer to a state in which it says nothing. What it claims for one model no later model of the same call gets.

mod evict;
mod fit;
mod homecoming;
mod survey;

use std::cmp::Reverse;

use cortex_core::ModelId;

use crate::action::{Action, Step};
use crate::desired::{Desired, Rank};
use crate::moment::Moment;
use crate::observed::{Demand, ModelDemand, ModelState, Observed, Reach};
use crate::profile::{Mode, Replicas};
use crate::words::{count, gib};
use fit::{Offer, Way};
use survey::Survey;

/// What to do now, in order. Nothing to do is the usual answer.
pub fn decide(desired: &Desired, observed: &Observed, demand: &Demand, now: Moment) -> Vec<Action> {
    let mut decision = Decision { survey: Survey::take(desired, observed, demand, now), actions: Vec::new() };
    decision.retire_misplaced();
    decision.give_places();
    decision.retire_surplus();
    decision.grow();
    decision.finish_drained();
    decision.defrag();
    decision.actions
}

/// A decision in the making: the fleet as it will be once the actions so far are done.
struct Decision<'a> {
    survey: Survey<'a>,
    actions: Vec<Action>,
}

impl Decision<'_> {
    /// Replicas where the placement does not want them.
    fn retire_misplaced(&mut self) {
        for at in std::mem::take(&mut self.survey.misplaced) {
            let replica = &self.survey.replicas[at];
            if self.survey.nodes[replica.node].observed.reach != Reach::Ready {
                continue;
            }
            let reason = match replica.model {
                Some(_) => "the placement does not put it here",
                None if self.survey.desired.policy().unload_undeclared => "the placement has no model of this name",
                None => continue,
            };
            self.retire(at, reason.to_owned());
        }
    }

    /// Who outranks others chooses first: a resident that made room for a higher rank must not claim it back before that one is there.
    fn give_places(&mut self) {
        let desired = self.survey.desired;
        let short = desired.residents.iter().filter(|model| self.survey.kept[**model] < desired.terms[**model].replicas.max);
        let residents: Vec<(Rank, usize)> = short.map(|model| (self.rank(*model), *model)).collect();
        let mut waiting: Vec<(Rank, ModelDemand, usize)> =
            self.survey.waiting().map(|(model, demand)| (self.rank(model), demand, model)).collect();
        waiting.sort_by_key(|(_, demand, model)| (demand.since, *model));
        let mut ranks: Vec<Rank> = residents.iter().map(|(rank, _)| *rank).chain(waiting.iter().map(|(rank, ..)| *rank)).collect();
        ranks.sort_unstable_by_key(|rank| Reverse(*rank));
        ranks.dedup();
        for rank in ranks {
            let held: Vec<usize> = residents.iter().filter(|(own, _)| *own == rank).map(|(_, model)| *model).collect();
            self.keep_residents(&held);
            for (_, demand, model) in waiting.iter().filter(|(own, ..)| *own == rank) {
                self.meet_demand(*model, *demand);
            }
        }
    }

    fn rank(&self, model: usize) -> Rank {
        self.survey.desired.terms[model].rank
    }

    /// Models that are held always get their proven places first, others where those are gone.
    fn keep_residents(&mut self, models: &[usize]) {
        let desired = self.survey.desired;
        for &model in models {
            let wanted = &desired.models[model];
            for home in &wanted.homes {
                let preload = wanted.spot(home.host).is_some_and(|spot| spot.mode == Mode::Preload);
                let kept = self.survey.kept[model];
                if kept >= wanted.profile.replicas.min && !(preload && kept < wanted.profile.replicas.max) {
                    continue;
                }
                let Some(node) = self.survey.node_of_host[home.host] else { continue };
                let mut offer = self.survey.offer(model, node, Some(&home.devices), true);
                if offer.is_none() && kept < wanted.profile.replicas.min {
                    self.clear(model, home);
                    offer = self.survey.offer(model, node, Some(&home.devices), true);
                }
                if let Some(offer) = offer {
                    self.accept(model, offer, &Purpose::Resident);
                }
            }
        }
        for &model in models {
            while self.survey.kept[model] < desired.models[model].profile.replicas.min {
                let Some(offer) = self.survey.best_offer(model, true, |mode| mode != Mode::OnDemand) else { break };
                self.accept(model, offer, &Purpose::Resident);
            }
        }
    }

    /// A model that somebody waits for and nobody serves.
    fn meet_demand(&mut self, model: usize, demand: ModelDemand) {
        if self.survey.serving[model] > 0 {
            return;
        }
        match (self.survey.best_offer(model, true, |_| true), &self.survey.desired.models[model].witness) {
            (Some(offer), _) => self.accept(model, offer, &Purpose::Demand(demand)),
            (None, Some(place)) => self.clear(model, place),
            (None, None) => {}
        }
    }

    /// Replicas beyond what is wanted, and those that nobody asked for in a long time.
    fn retire_surplus(&mut self) {
        // Whoever goes makes the others of its model fewer, so that none is in surplus later that is not now.
        let surplus = |at: &usize| self.surplus(*at).is_some() && self.survey.may_go(*at);
        let mut order: Vec<usize> = (0..self.survey.replicas.len()).filter(surplus).collect();
        order.sort_by_key(|at| (self.survey.is_home(*at), self.survey.replicas[*at].observed.last_used));
        for at in order {
            match self.surplus(at) {
                Some(Surplus::Many { serving, max }) => {
                    self.retire(at, format!("{serving} nodes hold it, and {} are wanted at most", count(max, "replica")));
                }
                Some(Surplus::Idle) => {
                    let idle_s = self.survey.unused_ms(at) / 1000;
                    self.retire(at, format!("nobody asked for it in {idle_s} s"));
                }
                None => {}
            }
        }
    }

    fn surplus(&self, at: usize) -> Option<Surplus> {
        let model = self.survey.replicas[at].model?;
        let (serving, Replicas { min, max }) = (self.survey.serving[model], self.survey.desired.terms[model].replicas);
        // One that is on its way in may be what this one goes for.
        if serving <= min || self.survey.loading[model] {
            return None;
        }
        if serving > max.max(1) {
            return Some(Surplus::Many { serving, max });
        }
        self.survey.is_past_idle_unload(at).then_some(Surplus::Idle)
    }

    /// One more replica for a model whose replicas are all full, where memory is free anyway.
    fn grow(&mut self) {
        let desired = self.survey.desired;
        for (model, terms) in desired.terms.iter().enumerate() {
            let serving = self.survey.serving[model];
            if serving == 0 || serving >= terms.replicas.max || self.survey.loading[model] {
                continue;
            }
            let open = self.survey.in_flight[model];
            if open < serving * terms.parallel {
                continue;
            }
            if let Some(offer) =
                self.survey.best_offer(model, false, |_| true).filter(|offer| matches!(offer.way, Way::Now | Way::TakeBack(_)))
            {
                self.accept(model, offer, &Purpose::Growth { open, serving });
            }
        }
    }

    /// What was drained and is wanted no more, or what others have claimed the memory of.
    fn finish_drained(&mut self) {
        for at in std::mem::take(&mut self.survey.draining) {
            let replica = &self.survey.replicas[at];
            let drained = replica.observed.in_flight == 0 && !replica.taken_back;
            if drained && self.survey.nodes[replica.node].observed.reach == Reach::Ready {
                let step = Step::Unload { model: replica.observed.id.clone() };
                self.act(replica.node, step, replica.observed.devices.clone(), "it has drained".to_owned());
            }
        }
    }

    /// One node at a time, and only one that nothing else is planned for. A node that is long overdue need not be idle.
    fn defrag(&mut self) {
        let Some(after) = self.survey.desired.policy().defrag_after_cycles.filter(|after| *after > 0) else { return };
        if self.survey.nodes.iter().any(|node| node.observed.reach == Reach::Defragging) {
            return;
        }
        let due = |at: &usize| {
            let node = &self.survey.nodes[*at];
            let cycles = node.observed.cycles;
            let quiet = || self.survey.replicas[node.replicas.clone()].iter().all(|replica| replica.observed.in_flight == 0);
            let still = || {
                self.survey.replicas[node.replicas.clone()]
                    .iter()
                    .all(|replica| matches!(replica.observed.state, ModelState::Loaded | ModelState::Failed { .. }))
            };
            let overdue = cycles >= after.saturating_mul(2);
            node.observed.reach == Reach::Ready && cycles >= after && !node.touched && still() && (overdue || quiet())
        };
        let worst = (0..self.survey.nodes.len()).filter(due).max_by_key(|at| (self.survey.nodes[*at].observed.cycles, Reverse(*at)));
        if let Some(at) = worst {
            let node = &self.survey.nodes[at];
            let reason = format!("{} loads and unloads since its memory was new; {after} are allowed", node.observed.cycles);
            self.act(at, Step::Defrag, (0..node.devices.len()).collect(), reason);
        }
    }

    /// Gives `model` the place, and has those leave that the offer names.
    fn accept(&mut self, model: usize, offer: Offer, purpose: &Purpose) {
        let wanted = &self.survey.desired.models[model];
        let victims = match &offer.way {
            Way::Evict(victims) => victims.clone(),
            _ => Vec::new(),
        };
        for victim in victims {
            let need = self.survey.need_mb(model);
            let room = need.map_or_else(String::new, |need| format!(" ({} on a device)", gib(need)));
            let idle_s = self.survey.unused_ms(victim) / 1000;
            self.retire(victim, format!("makes room for `{}`{room}: {}; itself unused for {idle_s} s", wanted.id, purpose.words()));
        }
        self.survey.claim(model, &offer);
        if matches!(offer.way, Way::Now | Way::TakeBack(_)) {
            self.act(offer.node, Step::Load { model: wanted.id.clone() }, offer.devices, purpose.words());
        }
    }

    /// Takes a replica out of service; its memory counts as coming back.
    fn retire(&mut self, at: usize, reason: String) {
        let replica = &self.survey.replicas[at];
        let (node, model, devices) = (replica.node, replica.observed.id.clone(), replica.observed.devices.clone());
        let step = if replica.observed.in_flight > 0 { Step::Drain { model } } else { Step::Unload { model } };
        self.survey.leave(at);
        self.act(node, step, devices, reason);
    }

    fn act(&mut self, node: usize, step: Step, devices: Vec<usize>, reason: String) {
        let view = &mut self.survey.nodes[node];
        view.touched = true;
        view.generation += 1;
        let action = Action { step, node: view.observed.id.clone(), devices, generation: view.generation, reason };
        self.actions.push(action);
    }
}

/// Why a replica is one too many.
enum Surplus {
    Many { serving: usize, max: usize },
    Idle,
}

/// What a place is for.
enum Purpose {
    Resident,
    Demand(ModelDemand),
    Growth {
        open: usize,
        serving: usize,
    },
    /// It is where this model has its proven place.
    Homecoming(ModelId),
}

impl Purpose {
    fn words(&self) -> String {
        match self {
            Self::Resident => "the placement holds it always".to_owned(),
            Self::Demand(ModelDemand { waiting: 1, .. }) => "1 request waits for it".to_owned(),
            Self::Demand(demand) => format!("{} requests wait for it", demand.waiting),
            Self::Homecoming(other) => format!("back to its proven place: where it is now it is in the way of `{other}`"),
            Self::Growth { open, serving } => format!("{open} requests are open on {}", count(*serving, "replica")),
        }
    }
}

impl Demand {
    /// Nobody waits.
    pub fn none() -> Self {
        Self::default()
    }

    /// `waiting` requests wait for `model` since `since`.
    #[must_use]
    pub fn with(mut self, model: impl Into<ModelId>, waiting: usize, since: Moment) -> Self {
        self.models.insert(model.into(), ModelDemand { waiting, since });
        self
    }
}
