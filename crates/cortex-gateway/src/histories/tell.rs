//! One history from its beginning to the last word of the oracle.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
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

pub(super) fn tell(seed: u64) -> History {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(Scene::begin(seed).run())
}

struct Scene {
    seed: u64,
    plan: Plan,
    nodes: Vec<Arc<Node>>,
    /// Left out of the configuration.
    without: Vec<bool>,
    app: Arc<App>,
    gateway: Arc<Router>,
    tasks: Tasks,
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
        let dialer = Dialer::in_memory(Arc::new(Network { nodes: nodes.clone() }));
        let app = Arc::new(App::over(Setup::from(plan.config(&without)), dialer).expect("metrics register"));
        let gateway = Arc::new(router::api(Arc::clone(&app)));
        let (tasks, began) = (Tasks::default(), Instant::now());
        let fleet = format!("{} nodes of {} MiB and {} places", nodes.len(), plan.memory_mb, plan.places);
        let told = [fleet].into_iter().chain(plan.models.iter().map(|model| format!("{model:?}"))).collect();
        let (ends, wrong) = (BTreeMap::new(), Vec::new());
        Self { seed, plan, nodes, without, app, gateway, tasks, began, told, ends, wrong }
    }

    async fn run(mut self) -> History {
        set_out(&self.app, &self.tasks).await;
        self.began = Instant::now();
        let mut asked = JoinSet::new();
        for (number, ask) in self.plan.asks.clone().into_iter().enumerate() {
            let (gateway, began) = (Arc::clone(&self.gateway), self.began);
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
        self.all_can_be_had().await;
        self.settles_once();
        self.tasks.kill.cancel();
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
            Break::Held(node, held) => {
                let hold = held.then_some(Hold::Operator);
                self.app.fleet.update(|fleet| fleet.held(&NodeId::from(self.plan.nodes[node]), hold));
            }
        }
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
        let setup = Setup::from(self.plan.config(&self.without));
        let _ = reload::reload(&self.app, setup, &self.tasks.tracker, &self.tasks.kill);
    }

    fn heal(&mut self) {
        for node in 0..self.nodes.len() {
            self.heals(node);
            if self.without[node] {
                self.reconfigures(node);
            }
            self.app.fleet.update(|fleet| fleet.held(&NodeId::from(self.plan.nodes[node]), None));
        }
    }

    fn ended(&mut self, end: &str, what: &str) {
        if end.contains('!') {
            self.wrong.push(format!("{what}: {end}"));
        }
        *self.ends.entry(end.to_owned()).or_default() += 1;
    }

    fn nothing_is_open(&mut self) {
        let fleet = self.app.fleet.load_full();
        for node in fleet.nodes() {
            let open = node.load.outstanding()
                + node.models.keys().filter_map(|model| node.model_load(model)).map(|load| load.outstanding()).sum::<usize>();
            if open > 0 || node.load.tokens() > 0 {
                self.wrong.push(format!("{} requests and {} tokens are still counted as open on {}", open, node.load.tokens(), node.id));
            }
        }
        for (model, waiting) in self.app.lifecycle.waiters().into_iter().chain(self.app.queues.lengths()) {
            if waiting > 0 {
                self.wrong.push(format!("{waiting} still wait for {model}"));
            }
        }
        for node in &self.nodes {
            let active = node.mock().counts().active;
            if active > 0 {
                self.wrong.push(format!("{active} generations still run on {}", node.name));
            }
        }
    }

    /// Nothing is broken any more, so every model answers, one after the other.
    async fn all_can_be_had(&mut self) {
        let models: Vec<&'static str> = self.plan.models.iter().map(|model| model.id).collect();
        for model in models {
            let ask = Ask { at: EVENTFUL, model, path: "/v1/chat/completions", stream: true, tokens: 3, leaves: None };
            let end = client::ask(Arc::clone(&self.gateway), ask).await;
            self.told.push(format!("{:>9.3?} at last {model}: {end}", self.began.elapsed()));
            if end != "ok" {
                self.wrong.push(format!("all is well again, and {model} cannot be had: {end}"));
            }
            self.plan.asks.push(Ask { at: EVENTFUL, model, path: "", stream: true, tokens: 3, leaves: None });
        }
    }

    /// The observer of each request has told its end, and told it once.
    fn settles_once(&mut self) {
        let text = self.app.metrics.render(&self.app.fleet.load(), &[], &[]).expect("metrics render");
        let counted =
            |line: &str| line.strip_prefix("cortex_requests_total{").and_then(|rest| rest.rsplit(' ').next()?.parse::<u64>().ok());
        let settled: u64 = text.lines().filter_map(counted).sum();
        if settled != self.plan.asks.len() as u64 {
            self.wrong.push(format!("{} requests were sent, and {settled} settled", self.plan.asks.len()));
        }
    }
}
