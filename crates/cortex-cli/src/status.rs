//! `cortex status`: the fleet in one table.

mod watch;

use std::io::IsTerminal;
use std::time::Duration;

use cortex_core::model::{ModelReport, ModelStatus};
use cortex_core::node::{FleetReport, NodeReport, NodeState};
use cortex_core::{DeviceInfo, DeviceKind};

use crate::client::Gateway;
use crate::error::{Result, Status};
use crate::style::{Ink, Style};
use crate::table::{Cell, Table, Word};
use crate::{output, units};

/// Shows the fleet; `Degraded` when a part of it is not well.
pub(crate) async fn run(gateway: &Gateway, json: bool) -> Result<Option<Status>> {
    let (fleet, raw): (FleetReport, _) = gateway.get("/admin/fleet").await?;
    if json {
        output::json(&raw)?;
    } else {
        output::text(&render(&fleet, Style::of_stdout()))?;
    }
    Ok(if is_well(&fleet) { None } else { Some(Status::Degraded) })
}

/// Shows the fleet anew each second, until the person at the keyboard has seen enough. Without a terminal, one table after the other.
pub(crate) async fn watch(gateway: &Gateway) -> Result<Option<Status>> {
    if std::io::stdout().is_terminal() && std::io::stdin().is_terminal() {
        return watch::run(gateway).await;
    }
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        let (fleet, _) = gateway.get::<FleetReport>("/admin/fleet").await?;
        output::text(&render(&fleet, Style::PLAIN))?;
    }
}

/// Every node takes requests, no load failed, no device refuses work.
fn is_well(fleet: &FleetReport) -> bool {
    fleet.nodes.iter().all(|node| node.state == NodeState::Ready && troubles(node).is_empty())
}

/// The table, what is wrong or on its way, and what the marks mean.
fn render(fleet: &FleetReport, style: Style) -> String {
    if fleet.nodes.is_empty() {
        return "no nodes: add a [[neurons]] entry to the gateway's configuration\n".into();
    }
    let table = [16, 8, 0].map(|bar| table(fleet, bar));
    let fits = |table: &&Table| style.width.is_none_or(|width| table.width_min() <= width);
    let mut out = table.iter().find(fits).unwrap_or(&table[2]).render(style);
    for (ink, line) in fleet.nodes.iter().flat_map(|node| loading(node).into_iter().chain(troubles(node))) {
        out += &style.paint(ink, &line);
        out.push('\n');
    }
    out + &legend(fleet, style)
}

fn table(fleet: &FleetReport, bar: usize) -> Table {
    let mut table = Table::new(&["NODE", "STATE", "DEVICES", "MEMORY", "MODELS", "LOAD"]);
    for node in &fleet.nodes {
        let (word, ink) = state(&node.state);
        let mut cells = vec![Cell::solid(Ink::Plain, node.name.as_str()), Cell::solid(ink, word), devices(node)];
        match &node.state {
            NodeState::Ejected { reason, for_s } => {
                let text = format!("{reason} {} ago, probing", units::seconds(*for_s));
                cells.extend([Cell::sentence(Ink::Plain, &text), Cell::default(), Cell::default()]);
            }
            NodeState::Unknown => {
                let text = format!("no answer from {} yet", node.endpoint);
                cells.extend([Cell::sentence(Ink::Dim, &text), Cell::default(), Cell::default()]);
            }
            NodeState::Ready | NodeState::Draining => cells.extend([memory(node, bar), models(node), load(node)]),
        }
        table.row(cells);
    }
    table
}

fn state(state: &NodeState) -> (&'static str, Ink) {
    match state {
        NodeState::Unknown => ("unknown", Ink::Dim),
        NodeState::Ready => ("ready", Ink::Good),
        NodeState::Draining => ("draining", Ink::Warn),
        NodeState::Ejected { .. } => ("ejected", Ink::Bad),
    }
}

/// `2 x RTX 5090`: equal devices together, in order.
fn devices(node: &NodeReport) -> Cell {
    let words: Vec<Word> = device_words(node).into_iter().map(|words| Word::new(Ink::Plain, words)).collect();
    if words.is_empty() { Cell::solid(Ink::Dim, "-") } else { Cell::list(words) }
}

fn device_words(node: &NodeReport) -> Vec<String> {
    let mut groups: Vec<(usize, String)> = Vec::new();
    for name in node.discovery.iter().flat_map(|discovery| &discovery.devices).map(device_name) {
        match groups.iter_mut().find(|(_, known)| *known == name) {
            Some((count, _)) => *count += 1,
            None => groups.push((1, name)),
        }
    }
    groups.into_iter().map(|(count, name)| if count == 1 && name == "CPU" { name } else { format!("{count} x {name}") }).collect()
}

/// The product without its maker; a processor's own name is too long to help.
fn device_name(device: &DeviceInfo) -> String {
    match device.kind {
        DeviceKind::Cpu => "CPU".into(),
        DeviceKind::Cuda => device.product.trim_start_matches("NVIDIA ").trim_start_matches("GeForce ").into(),
    }
}

/// `██████████████░░  54/64G` over all devices of the node.
fn memory(node: &NodeReport, bar: usize) -> Cell {
    let Some((used, total)) = memory_of(node) else { return Cell::solid(Ink::Dim, "-") };
    let share = (used as f64 / total as f64).clamp(0.0, 1.0);
    let ink = if share < 0.9 { Ink::Good } else { Ink::Warn };
    let full = (share * bar as f64).round() as usize;
    let figures = format!("{}/{}G", units::gib(used), units::gib(total));
    if bar == 0 {
        return Cell::solid(Ink::Plain, figures);
    }
    let word = Word::new(ink, "█".repeat(full)).then(Ink::Dim, "░".repeat(bar - full)).then(Ink::Plain, format!(" {figures:>7}"));
    Cell::list(vec![word])
}

/// Bytes in use and in all, of all devices; `None` where that is not known.
fn memory_of(node: &NodeReport) -> Option<(u64, u64)> {
    let total: u64 = node.discovery.iter().flat_map(|discovery| &discovery.devices).map(|device| device.memory_total_bytes).sum();
    let used: u64 = node.health.iter().flat_map(|health| &health.devices).map(|device| device.memory_used_bytes).sum();
    (total > 0).then_some((used, total))
}

/// Models that the node has told of, and those that are placed on it.
fn marked(node: &NodeReport) -> impl Iterator<Item = (&str, Mark)> {
    let listed = |id: &str| node.models.iter().any(|model| model.id.as_str() == id);
    let known = node.models.iter().map(|model| (model.id.as_str(), Mark::of(model)));
    known.chain(node.placed.iter().map(|id| (id.as_str(), Mark::Available)).filter(move |(id, _)| !listed(id)))
}

fn models(node: &NodeReport) -> Cell {
    let word = |(id, mark): (&str, Mark)| {
        let (sign, ink, _) = mark.shown();
        Word::new(Ink::Plain, id).then(ink, format!(" {sign}"))
    };
    let words: Vec<Word> = marked(node).map(word).collect();
    if words.is_empty() { Cell::solid(Ink::Dim, "-") } else { Cell::list(words) }
}

/// `12 running, 0 waiting, 1.9k tok/s`.
fn load(node: &NodeReport) -> Cell {
    Cell::enumeration(&load_words(node))
}

fn load_words(node: &NodeReport) -> Vec<String> {
    let models = || node.health.iter().flat_map(|health| &health.models);
    let running: u64 = models().map(|model| u64::from(model.running)).sum();
    let waiting: u64 = models().map(|model| u64::from(model.waiting)).sum();
    let speed = node.tokens_per_second.filter(|speed| *speed >= 0.5);
    let mut figures = vec![format!("{running} running")];
    if running + waiting > 0 {
        figures.push(format!("{waiting} waiting"));
    }
    figures.extend(speed.map(|speed| format!("{} tok/s", units::count(speed))));
    figures
}

fn loading(node: &NodeReport) -> Vec<(Ink, String)> {
    let line = |model: &ModelReport| match model.status {
        ModelStatus::Loading { percent } => Some((Ink::Warn, format!("◐ {} is loading on {}: {percent} %", model.id, node.name))),
        _ => None,
    };
    node.models.iter().filter_map(line).collect()
}

fn troubles(node: &NodeReport) -> Vec<(Ink, String)> {
    let failed = node.models.iter().filter_map(|model| match &model.status {
        ModelStatus::Failed { reason } => Some(format!("✗ {} cannot be loaded on {}: {reason}", model.id, node.name)),
        _ => None,
    });
    let poisoned = node.health.iter().flat_map(|health| &health.devices).filter_map(|device| {
        let reason = device.poisoned.as_ref()?;
        Some(format!("✗ {} of {} refuses work until neuron restarts: {reason}", device.name, node.name))
    });
    failed.chain(poisoned).map(|line| (Ink::Bad, line)).collect()
}

/// What stands behind a model's name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Loaded,
    Moving,
    Available,
    Failed,
}

impl Mark {
    const ALL: [Self; 4] = [Self::Loaded, Self::Moving, Self::Available, Self::Failed];

    fn of(model: &ModelReport) -> Self {
        match model.status {
            ModelStatus::Loaded => Self::Loaded,
            ModelStatus::Loading { .. } | ModelStatus::Unloading => Self::Moving,
            ModelStatus::Available => Self::Available,
            ModelStatus::Failed { .. } => Self::Failed,
        }
    }

    fn shown(self) -> (char, Ink, &'static str) {
        match self {
            Self::Loaded => ('●', Ink::Good, "loaded"),
            Self::Moving => ('◐', Ink::Warn, "loading or unloading"),
            Self::Available => ('○', Ink::Dim, "available"),
            Self::Failed => ('✗', Ink::Bad, "failed to load"),
        }
    }
}

/// The marks that the table uses.
fn legend(fleet: &FleetReport, style: Style) -> String {
    let shown = |node: &&NodeReport| matches!(node.state, NodeState::Ready | NodeState::Draining);
    let used = |mark: &Mark| {
        let listed = |node: &NodeReport| node.models.iter().any(|model| Mark::of(model) == *mark);
        fleet.nodes.iter().filter(shown).any(|node| listed(node) || (*mark == Mark::Available && !node.placed.is_empty()))
    };
    let entry = |mark: Mark| {
        let (sign, ink, meaning) = mark.shown();
        format!("{} {meaning}", style.paint(ink, &sign.to_string()))
    };
    let entries: Vec<String> = Mark::ALL.into_iter().filter(used).map(entry).collect();
    if entries.is_empty() { String::new() } else { entries.join("  ") + "\n" }
}

#[cfg(test)]
mod tests {
    use cortex_core::node::GatewayReport;
    use cortex_core::{DeviceHealth, Discovery, Health, ModelHealth};

    use super::*;

    const GIB: u64 = 1 << 30;

    fn node(name: &str, state: NodeState, products: &[&str], total_gib: u64, used_gib: u64) -> NodeReport {
        let device = |(index, product): (usize, &&str)| DeviceInfo {
            index,
            name: format!("cuda-dev-{index}"),
            kind: if *product == "CPU" { DeviceKind::Cpu } else { DeviceKind::Cuda },
            product: (*product).into(),
            memory_total_bytes: total_gib * GIB / products.len() as u64,
            compute_capability: None,
        };
        let devices: Vec<DeviceInfo> = products.iter().enumerate().map(device).collect();
        let health = |device: &DeviceInfo| DeviceHealth {
            name: device.name.clone(),
            memory_used_bytes: used_gib * GIB / products.len() as u64,
            memory_free_bytes: (total_gib - used_gib) * GIB / products.len() as u64,
            utilization_percent: None,
            temperature_c: None,
            poisoned: None,
        };
        NodeReport {
            name: name.into(),
            endpoint: format!("http://{name}:13131"),
            state,
            health: Some(Health { uptime_s: 60.0, ready: true, devices: devices.iter().map(health).collect(), models: vec![] }),
            discovery: Some(Discovery {
                hostname: name.into(),
                os: "Linux".into(),
                version: "0.1.0".into(),
                boot_id: "b".into(),
                driver_version: None,
                cuda_version: None,
                gpu_note: None,
                devices,
                harnesses: vec!["candle".into()],
            }),
            models: vec![],
            placed: vec![],
            requests_in_flight: 0,
            tokens_per_second: None,
            seen_s_ago: Some(0.2),
        }
    }

    fn model(id: &str, status: ModelStatus) -> ModelReport {
        ModelReport {
            id: id.into(),
            status,
            capabilities: vec![],
            architecture: None,
            parameters: None,
            context: None,
            devices: vec![],
            memory_used_bytes: 0,
            generation: 0,
            load_s: None,
        }
    }

    fn figures(id: &str, running: u32, waiting: u32) -> ModelHealth {
        ModelHealth {
            id: id.into(),
            servable: true,
            running,
            waiting,
            kv_blocks_used: 0,
            kv_blocks_total: 0,
            generated_tokens_total: 0,
            prompt_tokens_total: 0,
            cached_tokens_total: 0,
        }
    }

    fn fleet(nodes: Vec<NodeReport>) -> FleetReport {
        FleetReport { gateway: GatewayReport { version: "0.1.0".into(), uptime_s: 60.0, requests_in_flight: 0 }, nodes, memory: Vec::new() }
    }

    pub(super) fn busy() -> FleetReport {
        let mut beast = node("beast", NodeState::Ready, &["NVIDIA GeForce RTX 5090"; 2], 64, 54);
        beast.models = vec![model("qwen3-vl-8b", ModelStatus::Loaded), model("qwen3-32b", ModelStatus::Loaded)];
        beast.health.as_mut().unwrap().models = vec![figures("qwen3-vl-8b", 8, 0), figures("qwen3-32b", 4, 0)];
        beast.tokens_per_second = Some(1_912.0);
        let mut benjy = node("benjy", NodeState::Ready, &["NVIDIA GeForce RTX 4090"], 24, 6);
        benjy.models = vec![model("qwen3-embedding", ModelStatus::Loaded), model("coder-14b", ModelStatus::Available)];
        let quad =
            node("quad", NodeState::Ejected { reason: "connection refused".into(), for_s: 4.0 }, &["NVIDIA GeForce RTX 3060"], 12, 0);
        fleet(vec![beast, benjy, quad])
    }

    pub(super) fn troubled() -> FleetReport {
        let mut one = node("one", NodeState::Draining, &["CPU"], 32, 31);
        one.models = vec![model("a/b", ModelStatus::Loading { percent: 43 }), model("c", ModelStatus::Failed { reason: "no room".into() })];
        one.placed = vec!["d".into(), "c".into()];
        one.health.as_mut().unwrap().devices[0].poisoned = Some("an illegal address".into());
        let mut two = node("two", NodeState::Unknown, &["CPU"], 32, 0);
        (two.discovery, two.health) = (None, None);
        fleet(vec![one, two])
    }

    #[test]
    fn a_busy_fleet_fits_in_one_table() {
        insta::assert_snapshot!(render(&busy(), Style::PLAIN), @r"
        NODE   STATE    DEVICES       MEMORY                    MODELS                          LOAD
        beast  ready    2 x RTX 5090  ██████████████░░  54/64G  qwen3-vl-8b ●  qwen3-32b ●      12 running, 0 waiting, 1.9k tok/s
        benjy  ready    1 x RTX 4090  ████░░░░░░░░░░░░   6/24G  qwen3-embedding ●  coder-14b ○  0 running
        quad   ejected  1 x RTX 3060  connection refused 4 s ago, probing
        ● loaded  ○ available
        ");
        assert!(!is_well(&busy()));
    }

    #[test]
    fn a_narrow_terminal_gets_short_bars_and_broken_lists() {
        insta::assert_snapshot!(render(&busy(), Style { colour: false, width: Some(90) }), @r"
        NODE   STATE    DEVICES       MEMORY                    MODELS             LOAD
        beast  ready    2 x RTX 5090  ██████████████░░  54/64G  qwen3-vl-8b ●      12 running,
                                                                qwen3-32b ●        0 waiting,
                                                                                   1.9k tok/s
        benjy  ready    1 x RTX 4090  ████░░░░░░░░░░░░   6/24G  qwen3-embedding ●  0 running
                                                                coder-14b ○
        quad   ejected  1 x RTX 3060  connection refused 4 s ago, probing
        ● loaded  ○ available
        ");
        insta::assert_snapshot!(render(&busy(), Style { colour: false, width: Some(60) }), @r"
        NODE   STATE    DEVICES       MEMORY  MODELS             LOAD
        beast  ready    2 x RTX 5090  54/64G  qwen3-vl-8b ●      12 running,
                                              qwen3-32b ●        0 waiting,
                                                                 1.9k tok/s
        benjy  ready    1 x RTX 4090  6/24G   qwen3-embedding ●  0 running
                                              coder-14b ○
        quad   ejected  1 x RTX 3060  connection refused 4 s ago,
                                      probing
        ● loaded  ○ available
        ");
    }

    #[test]
    fn what_is_wrong_is_said_below_the_table() {
        insta::assert_snapshot!(render(&troubled(), Style::PLAIN), @r"
        NODE  STATE     DEVICES  MEMORY                    MODELS           LOAD
        one   draining  CPU      ████████████████  31/32G  a/b ◐  c ✗  d ○  0 running
        two   unknown   -        no answer from http://two:13131 yet
        ◐ a/b is loading on one: 43 %
        ✗ c cannot be loaded on one: no room
        ✗ cuda-dev-0 of one refuses work until neuron restarts: an illegal address
        ◐ loading or unloading  ○ available  ✗ failed to load
        ");
        assert!(!is_well(&troubled()));
    }

    #[test]
    fn colours_follow_meaning() {
        insta::assert_snapshot!(render(&troubled(), Style { colour: true, width: None }).replace('\x1b', "^"), @r"
        ^[1mNODE^[0m  ^[1mSTATE^[0m     ^[1mDEVICES^[0m  ^[1mMEMORY^[0m                    ^[1mMODELS^[0m           ^[1mLOAD^[0m
        one   ^[33mdraining^[0m  CPU      ^[33m████████████████^[0m  31/32G  a/b^[33m ◐^[0m  c^[31m ✗^[0m  d^[2m ○^[0m  0 running
        two   ^[2munknown^[0m   ^[2m-^[0m        ^[2mno^[0m ^[2manswer^[0m ^[2mfrom^[0m ^[2mhttp://two:13131^[0m ^[2myet^[0m
        ^[33m◐ a/b is loading on one: 43 %^[0m
        ^[31m✗ c cannot be loaded on one: no room^[0m
        ^[31m✗ cuda-dev-0 of one refuses work until neuron restarts: an illegal address^[0m
        ^[33m◐^[0m loading or unloading  ^[2m○^[0m available  ^[31m✗^[0m failed to load
        ");
    }

    #[test]
    fn a_fleet_without_nodes_says_how_to_add_one() {
        insta::assert_snapshot!(render(&fleet(vec![]), Style::PLAIN), @r"no nodes: add a [[neurons]] entry to the gateway's configuration");
        assert!(is_well(&fleet(vec![])));
    }
}
