//! What a seed says: the fleet, who asks for what and when, and what breaks.

use std::fmt::Write;
use std::time::Duration;

use cortex_core::config::GatewayConfig;

use super::chance::Chance;

/// Requests and faults fall into this time.
pub(super) const EVENTFUL: Duration = Duration::from_secs(20);
/// As `timeouts.total_ms_max`.
pub(super) const TOTAL_MAX: Duration = Duration::from_secs(60);

pub(super) struct Plan {
    /// Gateways before the same nodes, which know nothing of each other.
    pub(super) gateways: usize,
    pub(super) nodes: Vec<&'static str>,
    pub(super) models: Vec<ModelPlan>,
    pub(super) memory_mb: u64,
    pub(super) places: usize,
    /// How long a word takes from a gateway to a node.
    pub(super) latency: Duration,
    pub(super) asks: Vec<Ask>,
    pub(super) breaks: Vec<(Duration, Break)>,
}

#[derive(Debug)]
pub(super) struct ModelPlan {
    pub(super) id: &'static str,
    pub(super) vram_mb: u64,
    pub(super) load: Duration,
    pub(super) prefill: Duration,
    pub(super) token: Duration,
    terms: &'static str,
    /// Empty: wherever it fits.
    nodes: Vec<&'static str>,
}

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) at: Duration,
    /// Whom it is sent to.
    pub(super) gateway: usize,
    pub(super) model: &'static str,
    pub(super) path: &'static str,
    pub(super) stream: bool,
    pub(super) tokens: u64,
    /// When the client loses patience.
    pub(super) leaves: Option<Duration>,
}

/// Something goes wrong, or is changed, on the node of that place.
#[derive(Clone, Debug)]
pub(super) enum Break {
    /// Its connections are cut and further ones refused.
    Dies(usize),
    /// It comes back with nothing in memory.
    Returns(usize),
    /// It accepts connections and says nothing.
    Deaf(usize),
    /// It cuts each connection on which somebody asks for tokens.
    Resets(usize),
    /// It cuts each answer after so many pieces.
    Cuts(usize, usize),
    /// It says nothing after so many pieces.
    Stalls(usize, usize),
    /// Its generations end with an error after so many tokens.
    Fails(usize, usize),
    /// Its generations begin and give nothing.
    Hangs(usize),
    /// It answers 503.
    Overloaded(usize),
    /// The next loads fail.
    LoadsFail(usize, u32),
    /// It takes nothing new.
    Drains(usize),
    /// It is well again; one that died comes back.
    Heals(usize),
    /// The configuration loses it, or gets it back.
    Reconfigured(usize),
    /// An operator has it drained, or not any more.
    Held(usize, bool),
}

impl Plan {
    pub(super) fn of(chance: &mut Chance) -> Self {
        let gateways = if chance.percent(40) { 2 } else { 1 };
        let all = ["a", "b", "c"];
        let nodes = all[..chance.between(1, 4) as usize].to_vec();
        let memory_mb = 1024 * chance.between(2, 6);
        let names = ["m0", "m1", "m2", "m3"];
        let count = chance.between(1, 5) as usize;
        let mut models: Vec<ModelPlan> = names[..count].iter().map(|id| ModelPlan::of(id, memory_mb, &nodes, chance)).collect();
        // What stays must leave room for each that comes and goes.
        let (stay, come): (Vec<&ModelPlan>, Vec<&ModelPlan>) = models.iter().partition(|model| model.terms == RESIDENT);
        let room_mb = memory_mb.saturating_sub(stay.iter().map(|model| model.vram_mb).sum());
        if come.iter().any(|model| model.vram_mb > room_mb) || room_mb == 0 {
            models.iter_mut().filter(|model| model.terms == RESIDENT).for_each(|model| model.terms = "");
        }
        let asks = (0..chance.between(3, 25)).map(|_| Ask::of(gateways, &names[..count], chance)).collect();
        let mut breaks: Vec<_> = (0..chance.between(0, 9)).map(|_| (chance.millis(0, 20_000), Break::of(nodes.len(), chance))).collect();
        breaks.sort_by_key(|(at, _)| *at);
        let latency = if chance.percent(50) { Duration::ZERO } else { chance.millis(1, 40) };
        Self { gateways, nodes, models, memory_mb, places: chance.between(1, 9) as usize, latency, asks, breaks }
    }

    /// The gateway's configuration, without the nodes of these places.
    pub(super) fn config(&self, without: &[bool]) -> GatewayConfig {
        let mut text = String::from(
            "[timeouts]\nfirst_byte_ms_max = 5000\nidle_ms_max = 2500\ntotal_ms_max = 60000\nqueue_ms_max = 4000\nload_ms_max = 15000\n\
             place_ms_max = 20000\npoll_ms = 3000\nload_failure_ms = 2000\n[eviction]\nresidency_ms_min = 1000\nidle_ms = 5000\n\
             defrag_after_cycles = 7\n",
        );
        let there = |name: &&&str| self.nodes.iter().position(|node| node == *name).is_some_and(|place| !without[place]);
        for node in self.nodes.iter().filter(there) {
            let _ = writeln!(text, "[[neurons]]\nname = \"{node}\"\nendpoint = \"http://{node}:1\"");
        }
        for ModelPlan { id, vram_mb, terms, nodes, .. } in &self.models {
            let nodes: Vec<&&str> = nodes.iter().filter(there).collect();
            let _ = writeln!(text, "[[models]]\nid = \"{id}\"\nvram_mb = {vram_mb}\nneurons = {nodes:?}\n{terms}");
        }
        GatewayConfig::parse(&text).unwrap_or_else(|error| panic!("{error} in\n{text}"))
    }
}

const RESIDENT: &str = "residency = \"resident\"";

impl ModelPlan {
    fn of(id: &'static str, memory_mb: u64, nodes: &[&'static str], chance: &mut Chance) -> Self {
        let terms = ["", "", RESIDENT, "idle_unload_s = 6", "priority = 150", "replicas = { max = 2 }"];
        let somewhere: Vec<&'static str> = if chance.percent(50) { vec![*chance.pick(nodes)] } else { Vec::new() };
        Self {
            id,
            vram_mb: chance.between(512, memory_mb),
            load: chance.millis(50, 4_000),
            prefill: chance.millis(0, 1_500),
            token: chance.millis(0, 120),
            terms: *chance.pick(&terms),
            nodes: somewhere,
        }
    }
}

impl Ask {
    fn of(gateways: usize, models: &[&'static str], chance: &mut Chance) -> Self {
        Self {
            at: chance.millis(0, EVENTFUL.as_millis() as u64),
            gateway: chance.between(0, gateways as u64) as usize,
            model: *chance.pick(models),
            path: *chance.pick(&["/v1/chat/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses"]),
            stream: chance.percent(75),
            tokens: chance.between(1, 30),
            leaves: chance.percent(20).then(|| chance.millis(0, 6_000)),
        }
    }
}

impl Break {
    fn of(nodes: usize, chance: &mut Chance) -> Self {
        let node = chance.between(0, nodes as u64) as usize;
        let pieces = chance.between(1, 12) as usize;
        match chance.between(0, 18) {
            0 | 1 => Self::Dies(node),
            2 => Self::Returns(node),
            3 => Self::Deaf(node),
            4 => Self::Resets(node),
            5 => Self::Cuts(node, pieces),
            6 => Self::Stalls(node, pieces),
            7 => Self::Fails(node, pieces - 1),
            8 => Self::Hangs(node),
            9 => Self::Overloaded(node),
            10 | 11 => Self::LoadsFail(node, chance.between(1, 4) as u32),
            12 => Self::Drains(node),
            13 | 14 => Self::Heals(node),
            15 => Self::Reconfigured(node),
            16 => Self::Held(node, true),
            _ => Self::Held(node, false),
        }
    }
}
