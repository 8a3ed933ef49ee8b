//! One history from its beginning to the last word of the oracle.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cortex_core::NodeId;
use cortex_net::Dialer;
use neuron_api::mock::Faults;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::chance::Chance;
use super::client;
use super::node::{Network, Node, Wire};
use super::plan::{Ask, Break, EVENTFUL, Plan, TOTAL_MAX};
use crate::app::App;
use crate::fleet::Hold;
use crate::front::Front;
use crate::lifecycle::Tasks;
use crate::setup::Setup;
use crate::{reload, router, set_out};

/// What came of a seed.
#[derive(Debug)]
pub(super) struct History {
    pub(super) seed: u64,
    /// Line by line.
    pub(super) told: Vec<String>,
    /// How often requests ended in which way.
    pub(super) ends: BTreeMap<String, u64>,
    /// What may not be.
    pub(super) wrong: Vec<String>,
}

/// Longer than its deadline no request takes, save for what the clock's steps and the closing of a connection add.
const GRACE: Duration = Duration::from_secs(2);
/// After the last fault: ejected nodes are probed up to 32 times before they are trusted, failed loads are spared for a while.
const RECOVERY: Duration = Duration::from_secs(90);

/// After that: what is not used any more has left, and what stays has come back.
const REST: Duration = Duration::from_secs(30);

pub(super) fn tell(seed: u64) -> History {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(Scene::begin(seed).run())
}

/// One of those before the nodes.
struct Gateway {
    app: Arc<App>,
    front: Arc<Front>,
    tasks: Tasks,
}

impl Gateway {
    fn new(number: usize, plan: &Plan, nodes: &[Arc<Node>]) -> Self {
        let dialer = Dialer::in_memory(Arc::new(Network { nodes: nodes.to_vec(), gateway: number }));
        let setup = Setup::from(plan.config(&vec![false; nodes.len()]));
        let app = Arc::new(App::over(setup, dialer).expect("metrics register"));
        Self { front: Arc::new(router::api(Arc::clone(&app))), app, tasks: Tasks::default() }
    }
}

struct Scene {
    seed: u64,
    plan: Plan,
    nodes: Vec<Arc<Node>>,
    /// Left out of the configuration.
    without: Vec<bool>,
    gateways: Vec<Gateway>,
    began: Instant,
    told: Vec<String>,
    ends: BTreeMap<String, u64>,
    wrong: Vec<String>,
}

impl Scene {
    fn begin(seed: u64) -> Self {
        let plan = Plan::of(&mut Chance::new(seed));
        let nodes: Vec<Arc<Node>> = plan.nodes.iter().map(|name| Node::new(name, &plan)).collect();
        let without = vec![false; nodes.len()];
        let gateways: Vec<Gateway> = (0..plan.gateways).map(|number| Gateway::new(number, &plan, &nodes)).collect();
        let began = Instant::now();
        let fleet = format!("{} gateways, {} nodes of {} MiB and {} places", plan.gateways, nodes.len(), plan.memory_mb, plan.places);
        let told = [fleet].into_iter().chain(plan.models.iter().map(|model| format!("{model:?}"))).collect();
        let (ends, wrong) = (BTreeMap::new(), Vec::new());
        Self { seed, plan, nodes, without, gateways, began, told, ends, wrong }
    }

    async fn run(mut self) -> History {
        for gateway in &self.gateways {
            set_out(&gateway.app, &gateway.tasks).await;
        }
        self.began = Instant::now();
        let mut asked = JoinSet::new();
        for (number, ask) in self.plan.asks.clone().into_iter().enumerate() {
            let (gateway, began) = (Arc::clone(&self.gateways[ask.gateway].front), self.began);
            asked.spawn(async move {
                sleep_until(began + ask.at).await;
                let end = timeout(TOTAL_MAX + GRACE, client::ask(gateway, ask.clone())).await;
                (number, ask, end.unwrap_or_else(|_| "! no end".into()), began.elapsed())
            });
        }
        for (at, event) in std::mem::take(&mut self.plan.breaks) {
            sleep_until(self.began + at).await;
            self.told.push(format!("{:>9.3?} {event:?}", self.began.elapsed()));
            self.happens(&event);
        }
        sleep_until(self.began + EVENTFUL).await;
        // Some faults stay until the last request has ended: nothing may depend on being rescued.
        while let Some(ended) = asked.join_next().await {
            let (number, ask, end, at) = ended.expect("a client does not panic");
            self.told.push(format!("{at:>9.3?} #{number} {end:18} {ask:?}"));
            self.ended(&end, &format!("#{number} {ask:?}"));
        }
        self.heal();
        tokio::time::sleep(RECOVERY).await;
        self.nothing_is_open();
        self.all_is_at_rest().await;
        self.all_can_be_had().await;
        self.settles_once();
        self.gateways.iter().for_each(|gateway| gateway.tasks.kill.cancel());
        self.wrong.extend(self.nodes.iter().flat_map(|node| node.wrong()));
        let Self { seed, told, ends, wrong, .. } = self;
        History { seed, told, ends, wrong }
    }

    fn happens(&mut self, event: &Break) {
        let nodes = &self.nodes;
        let up = |node: usize, wire: Wire| {
            if !nodes[node].is_down() {
                nodes[node].wire(wire);
            }
        };
        match *event {
            Break::Dies(node) => nodes[node].dies(),
            Break::Returns(node) => nodes[node].returns(),
            Break::Deaf(node) => up(node, Wire::Deaf),
            Break::Resets(node) => up(node, Wire::Resets),
            Break::Cuts(node, pieces) => up(node, Wire::Cuts(pieces)),
            Break::Stalls(node, pieces) => up(node, Wire::Stalls(pieces)),
            Break::Fails(node, tokens) => nodes[node].faults(&Faults { die_after: Some(tokens), ..Faults::default() }),
            Break::Hangs(node) => nodes[node].faults(&Faults { hang: true, ..Faults::default() }),
            Break::Overloaded(node) => nodes[node].faults(&Faults { overloaded: Some(2), ..Faults::default() }),
            Break::LoadsFail(node, times) => nodes[node].faults(&Faults { fail_loads: times, ..Faults::default() }),
            Break::Drains(node) => nodes[node].mock().set_ready(false),
            Break::Heals(node) => self.heals(node),
            Break::Reconfigured(node) => self.reconfigures(node),
            Break::Held(node, held) => self.holds(node, held.then_some(Hold::Operator)),
        }
    }

    /// As operators do: at each gateway.
    fn holds(&self, node: usize, hold: Option<Hold>) {
        let node = NodeId::from(self.plan.nodes[node]);
        self.gateways.iter().for_each(|gateway| gateway.app.fleet.update(|fleet| fleet.held(&node, hold)));
    }

    fn heals(&self, node: usize) {
        let node = &self.nodes[node];
        node.returns();
        node.wire(Wire::Good);
        node.faults(&Faults::default());
        node.mock().set_ready(true);
    }

    fn reconfigures(&mut self, node: usize) {
        self.without[node] = !self.without[node];
        for Gateway { app, tasks, .. } in &self.gateways {
            let setup = Setup::from(self.plan.config(&self.without));
            let _ = reload::reload(app, setup, &tasks.tracker, &tasks.kill);
        }
    }

    fn heal(&mut self) {
        for node in 0..self.nodes.len() {
            self.heals(node);
            if self.without[node] {
                self.reconfigures(node);
            }
            self.holds(node, None);
        }
    }

    fn ended(&mut self, end: &str, what: &str) {
        if end.contains('!') {
            self.wrong.push(format!("{what}: {end}"));
        }
        *self.ends.entry(end.to_owned()).or_default() += 1;
    }

    fn nothing_is_open(&mut self) {
        for Gateway { app, .. } in &self.gateways {
            let fleet = app.fleet.load_full();
            for node in fleet.nodes() {
                let open = node.load.outstanding()
                    + node.models.keys().filter_map(|model| node.model_load(model)).map(|load| load.outstanding()).sum::<usize>();
                if open > 0 || node.load.tokens() > 0 {
                    self.wrong.push(format!(
                        "{} requests and {} tokens are still counted as open on {}",
                        open,
                        node.load.tokens(),
                        node.id
                    ));
                }
            }
            for (model, waiting) in app.lifecycle.waiters().into_iter().chain(app.queues.lengths()) {
                if waiting > 0 {
                    self.wrong.push(format!("{waiting} still wait for {model}"));
                }
            }
        }
        for node in &self.nodes {
            let active = node.mock().counts().active;
            if active > 0 {
                self.wrong.push(format!("{active} generations still run on {}", node.name));
            }
        }
    }

    /// Where nobody asks for anything, nothing comes and goes: what one gateway wants, no other undoes.
    async fn all_is_at_rest(&mut self) {
        let moves = |nodes: &[Arc<Node>]| -> Vec<usize> {
            nodes.iter().map(|node| node.mock().counts()).map(|counts| counts.loads_started + counts.unloads).collect()
        };
        let before = moves(&self.nodes);
        tokio::time::sleep(REST).await;
        let after = moves(&self.nodes);
        if before != after {
            self.wrong.push(format!("nobody asks for anything, and models come and go: {before:?} loads and unloads, then {after:?}"));
        }
    }

    /// Nothing is broken any more, so every model answers, one after the other, at each gateway.
    async fn all_can_be_had(&mut self) {
        let models: Vec<&'static str> = self.plan.models.iter().map(|model| model.id).collect();
        for (model, gateway) in models.into_iter().flat_map(|model| (0..self.plan.gateways).map(move |gateway| (model, gateway))) {
            let ask = Ask { at: EVENTFUL, gateway, model, path: "/v1/chat/completions", stream: true, tokens: 3, leaves: None };
            let end = client::ask(Arc::clone(&self.gateways[gateway].front), ask.clone()).await;
            self.told.push(format!("{:>9.3?} at last {model}: {end}", self.began.elapsed()));
            if end != "ok" {
                self.wrong.push(format!("all is well again, and {model} cannot be had of gateway {gateway}: {end}"));
            }
            self.plan.asks.push(ask);
        }
    }

    /// The observer of each request has told its end, and told it once.
    fn settles_once(&mut self) {
        let counted =
            |line: &str| line.strip_prefix("cortex_requests_total{").and_then(|rest| rest.rsplit(' ').next()?.parse::<u64>().ok());
        let settled = |Gateway { app, .. }: &Gateway| -> u64 {
            let text = app.metrics.render(&app.fleet.load(), &[], &[]).expect("metrics render");
            text.lines().filter_map(counted).sum()
        };
        let settled: u64 = self.gateways.iter().map(settled).sum();
        if settled != self.plan.asks.len() as u64 {
            self.wrong.push(format!("{} requests were sent, and {settled} settled", self.plan.asks.len()));
        }
    }
}
