//! The same `decide` over mock nodes in virtual time, with demand and faults drawn from a seed. The first rule that an action breaks
//! ends the run.

mod random;
mod scenario;
mod world;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cortex_core::{ModelId, NodeId};

use crate::decide::decide;
use crate::desired::Desired;
use crate::moment::Moment;
use crate::observed::{Demand, ModelDemand};
use random::Random;
use scenario::Scenario;
use world::World;

/// Virtual time between two decisions.
const STEP_MS: u64 = 500;

/// Steps with demand and faults.
const BUSY_STEPS: usize = 400;

/// Steps after the last change within which the fleet must have come to rest.
const REST_STEPS_MAX: usize = 600;

/// Nobody waits longer, whatever happens to nodes.
const WAIT_MS_MAX: u64 = 600_000;

/// What to simulate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Simulation {
    /// How many nodes.
    pub nodes: usize,
    /// Draws demand and faults.
    pub seed: u64,
    /// Whether nodes go away and loads fail.
    pub faults: bool,
}

/// How it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Loads ordered.
    pub loads: usize,
    /// Loads that failed.
    pub loads_failed: usize,
    /// Unloads ordered.
    pub unloads: usize,
    /// Nodes whose memory was rebuilt.
    pub defrags: usize,
    /// Nodes that went away.
    pub losses: usize,
    /// Requests served.
    pub served: usize,
    /// The longest that a request waited, in virtual milliseconds.
    pub waited_ms_max: u64,
    /// Steps from the last change until nothing was left to do.
    pub rest_steps: usize,
    /// Real time of a decision while demand and faults came.
    pub decision: Spread,
    /// The same on the caller's clock.
    pub processor: Spread,
}

/// The middle and the longest of many times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// Half of them are shorter.
    pub middle: Duration,
    /// None is longer.
    pub max: Duration,
}

impl Spread {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self { middle: times.get(times.len() / 2).copied().unwrap_or_default(), max: times.last().copied().unwrap_or_default() }
    }
}

/// Runs to the end. `processor` tells how long this thread has computed, on any clock of its own: on a busy machine a decision may take
/// long for no fault of its own.
///
/// # Errors
/// The rule that was broken, with the step.
pub fn simulate(simulation: &Simulation, processor: fn() -> Duration) -> Result<Outcome, String> {
    let Scenario { placement, policy, observed, demanded } = Scenario::new(simulation.nodes)?;
    let desired = Desired::new(placement.clone(), policy);
    let index: BTreeMap<NodeId, usize> = observed.nodes.iter().enumerate().map(|(at, node)| (node.id.clone(), at)).collect();
    let holders: Vec<(ModelId, Vec<usize>)> =
        demanded.iter().map(|model| (model.clone(), placement.models[model].placement.keys().map(|host| index[host]).collect())).collect();
    let mut run = Run {
        world: World::new(&placement, observed, simulation.seed, simulation.faults),
        desired,
        index,
        holders,
        random: Random::new(simulation.seed.wrapping_add(77)),
        demand: Demand::none(),
        times: Times::default(),
        processor,
        served: 0,
        waited_ms_max: 0,
    };
    run.run_to_the_end()
}

struct Run<'a> {
    world: World<'a>,
    desired: Desired,
    index: BTreeMap<NodeId, usize>,
    /// Models that are asked for, each with the nodes that may hold it.
    holders: Vec<(ModelId, Vec<usize>)>,
    random: Random,
    demand: Demand,
    times: Times,
    processor: fn() -> Duration,
    served: usize,
    waited_ms_max: u64,
}

/// How long each decision took.
#[derive(Default)]
struct Times {
    clock: Vec<Duration>,
    processor: Vec<Duration>,
}

impl Run<'_> {
    fn run_to_the_end(&mut self) -> Result<Outcome, String> {
        let mut now = Moment(1_000_000);
        for step in 0..BUSY_STEPS {
            self.ask(now);
            self.step(now).map_err(|broken| format!("step {step}: {broken}"))?;
            now = now + STEP_MS;
        }
        let times = std::mem::take(&mut self.times);
        self.world.calm();
        let mut quiet = 0;
        for step in 0..REST_STEPS_MAX {
            let done = self.step(now).map_err(|broken| format!("rest step {step}: {broken}"))?;
            now = now + STEP_MS;
            // Requests still run for a while, and a node may be away.
            quiet = if done && self.demand.models.is_empty() { quiet + 1 } else { 0 };
            if quiet >= QUIET_STEPS {
                return Ok(self.outcome(times, step + 1 - QUIET_STEPS));
            }
        }
        Err(format!("no rest within {REST_STEPS_MAX} steps: {} models are still waited for", self.demand.models.len()))
    }

    /// New requests; those that nobody serves wait.
    fn ask(&mut self, now: Moment) {
        for _ in 0..self.holders.len().div_ceil(20) {
            // Squared, so that some models are asked for far more often.
            let (a, b) = (self.random.below(self.holders.len()), self.random.below(self.holders.len()));
            let model = self.holders[a * b / self.holders.len()].0.clone();
            let demand = self.demand.models.entry(model).or_insert(ModelDemand { waiting: 0, since: now });
            demand.waiting += 1;
        }
    }

    /// `true` when nothing was left to do.
    fn step(&mut self, now: Moment) -> Result<bool, String> {
        self.world.advance(now);
        self.serve_waiting(now);
        if let Some((model, demand)) = self.demand.models.iter().find(|(_, demand)| now.ms_since(demand.since) > WAIT_MS_MAX) {
            return Err(format!("`{model}` is waited for since {} s", now.ms_since(demand.since) / 1000));
        }
        let (started, computed) = (Instant::now(), (self.processor)());
        let actions = decide(&self.desired, &self.world.observed, &self.demand, now);
        self.times.processor.push((self.processor)().saturating_sub(computed));
        self.times.clock.push(started.elapsed());
        for action in &actions {
            self.world.carry_out(self.index[&action.node], action, now)?;
        }
        Ok(actions.is_empty())
    }

    fn serve_waiting(&mut self, now: Moment) {
        for (model, holders) in &self.holders {
            let Some(demand) = self.demand.models.get_mut(model) else { continue };
            while demand.waiting > 0 && self.world.serve(model, holders, now) {
                demand.waiting -= 1;
                self.served += 1;
                self.waited_ms_max = self.waited_ms_max.max(now.ms_since(demand.since));
            }
        }
        self.demand.models.retain(|_, demand| demand.waiting > 0);
    }

    fn outcome(&self, times: Times, rest_steps: usize) -> Outcome {
        Outcome {
            loads: self.world.loads,
            loads_failed: self.world.loads_failed,
            unloads: self.world.unloads,
            defrags: self.world.defrags,
            losses: self.world.losses,
            served: self.served,
            waited_ms_max: self.waited_ms_max,
            rest_steps,
            decision: Spread::of(times.clock),
            processor: Spread::of(times.processor),
        }
    }
}

/// Steps without anything to do after which the fleet is at rest: longer than a load, an unload and an absence.
const QUIET_STEPS: usize = 80;
