//! Whatever the fleet looks like, an answer of `decide` breaks no rule.

use std::collections::{BTreeMap, BTreeSet};

use cortex_core::{ModelId, NodeId};
use cortex_placement::{
    Action, Demand, Desired, ModelState, Moment, Observed, ObservedModel, ObservedNode, Placement, Policy, Reach, Replicas, Residency,
    Step, decide,
};
use proptest::prelude::*;

use crate::fleet::{Model, S, model, node, observed, placement};

const HOSTS: [(&str, &[u64]); 3] = [("x", &[100, 100]), ("y", &[60]), ("z", &[80, 40])];
const MODELS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

#[derive(Clone, Debug)]
struct Case {
    placement: Placement,
    observed: Observed,
    demand: Demand,
    now: Moment,
}

fn any_model(id: &'static str) -> impl Strategy<Value = Model> {
    let resident = prop_oneof![Just(None), (0..3usize, 1..3usize).prop_map(Some)];
    (10..70u64, 1..3usize, 0..4i32, resident, any::<bool>(), prop::option::of(1..60u64), prop::bits::u8::between(0, 3)).prop_map(
        move |(size, devices, priority, resident, pinned, idle, hosts)| {
            let (home, replicas) = resident.unzip();
            let mut built = model(id, size).priority(priority);
            if let Some(idle) = idle {
                built = built.idle_unload(idle);
            }
            let split = devices == 2 && home != Some(1);
            if split {
                built = built.tensor_parallel(2);
            }
            let named: Vec<&str> = (0..3).filter(|at| hosts & (1 << at) != 0).map(|at| HOSTS[at].0).collect();
            if !named.is_empty() {
                built = built.on(&named);
            }
            if let Some(home) = home.filter(|home| named.is_empty() || named.contains(&HOSTS[*home].0)) {
                built = built.home(HOSTS[home].0, if split { &[0, 1] } else { &[0] });
                built = if pinned { built.pinned() } else { built };
                built.profile.replicas = Replicas { min: replicas.unwrap_or(1), max: 2 };
            }
            built
        },
    )
}

fn any_state() -> impl Strategy<Value = ModelState> {
    prop_oneof![
        4 => Just(ModelState::Loaded),
        1 => Just(ModelState::Loading),
        1 => Just(ModelState::Draining),
        1 => Just(ModelState::Unloading),
        1 => (1..4u32).prop_map(|failures| ModelState::Failed { failures }),
    ]
}

/// Some of the models, where their devices have room.
fn any_node(at: usize, models: Vec<Model>) -> impl Strategy<Value = ObservedNode> {
    let (id, devices) = HOSTS[at];
    let held = prop::collection::vec((any::<bool>(), any_state(), 0..devices.len(), 0..3usize, 0..100u64, 0..100u64), MODELS.len());
    let reach = prop_oneof![4 => Just(Reach::Ready), 1 => Just(Reach::Defragging), 1 => Just(Reach::Away { since: Moment(50 * S) })];
    (held, reach, 0..120u32, 0..10u32).prop_map(move |(held, reach, cycles, swaps_recent)| {
        let mut free = devices.to_vec();
        let mut present = Vec::new();
        for (model, (there, state, first, in_flight, since, used)) in models.iter().zip(held) {
            let (size, split) = footprint(&model.profile);
            let wanted: Vec<usize> = (0..split).map(|offset| (first + offset) % devices.len()).collect();
            let failed = matches!(state, ModelState::Failed { .. });
            let room = split <= devices.len() && wanted.iter().all(|index| free[*index] >= size);
            if !there || !(failed || room) {
                continue;
            }
            if !failed {
                wanted.iter().for_each(|index| free[*index] -= size);
            }
            let in_flight = if matches!(state, ModelState::Loaded | ModelState::Draining) { in_flight } else { 0 };
            let (since, last_used) = (Moment(since * S), Moment((since + used) * S));
            let id = model.profile.spec.model_id.clone();
            present.push(ObservedModel { id, state, since, devices: wanted, device_mb: 0, in_flight, last_used });
        }
        ObservedNode { reach, models: present, cycles, swaps_recent, ..node(id, devices) }
    })
}

fn any_case() -> impl Strategy<Value = Case> {
    let models = MODELS.map(any_model);
    let demand = prop::collection::vec(prop::option::of((1..5usize, 0..100u64)), MODELS.len());
    (models, demand, 100..300u64).prop_flat_map(|(models, demand, now_s)| {
        let models = models.to_vec();
        let placement = placement(&HOSTS, &models);
        let waits = MODELS.iter().zip(demand).filter_map(|(id, waits)| waits.map(|(count, since)| (*id, count, Moment(since * S))));
        let demand = waits.fold(Demand::none(), |demand, (id, count, since)| demand.with(id, count, since));
        let nodes: Vec<_> = (0..HOSTS.len()).map(|at| any_node(at, models.clone()).boxed()).collect();
        nodes.prop_map(move |nodes| Case {
            placement: placement.clone(),
            observed: observed(nodes),
            demand: demand.clone(),
            now: Moment(now_s * S),
        })
    })
}

fn footprint(profile: &cortex_placement::ModelProfile) -> (u64, usize) {
    let footprint = profile.footprint.expect("test models have one");
    (footprint.device_mb, footprint.devices)
}

/// Every rule that an answer must keep.
fn check(case: &Case, policy: &Policy, actions: &[Action]) -> Result<(), TestCaseError> {
    let nodes: BTreeMap<&NodeId, &ObservedNode> = case.observed.nodes.iter().map(|node| (&node.id, node)).collect();
    let mut newest: BTreeMap<&NodeId, u64> = BTreeMap::new();
    let mut touched: BTreeSet<(&NodeId, Option<&ModelId>)> = BTreeSet::new();
    for action in actions {
        let node = nodes[&action.node];
        prop_assert_eq!(node.reach, Reach::Ready, "{} is not ready: {}", &node.id, action);
        let before = newest.insert(&node.id, action.generation).unwrap_or(node.generation);
        prop_assert!(action.generation > before, "stale: {}", action);
        prop_assert!(touched.insert((&node.id, action.model())), "twice: {}", action);
        let present = action.model().and_then(|model| node.models.iter().find(|held| held.id == *model));
        match &action.step {
            Step::Load { model } => {
                let profile = &case.placement.models[model];
                prop_assert!(profile.spot(&node.id).is_some(), "not placed there: {}", action);
                let distinct: BTreeSet<_> = action.devices.iter().collect();
                prop_assert_eq!(distinct.len(), footprint(profile).1, "{}", action);
                let absent = present.is_none_or(|held| matches!(held.state, ModelState::Failed { .. } | ModelState::Draining));
                prop_assert!(absent, "a second load: {}", action);
            }
            Step::Drain { .. } | Step::Unload { .. } => {
                let held = present.expect("only what is there can leave");
                prop_assert!(matches!(held.state, ModelState::Loaded | ModelState::Draining), "{}", action);
                prop_assert_eq!(held.in_flight > 0, matches!(action.step, Step::Drain { .. }), "{}", action);
                check_leaving(case, policy, node, held)?;
            }
            Step::Defrag => prop_assert!(node.cycles >= 50),
        }
    }
    check_memory(case, actions)
}

/// A replica that leaves is unwanted, drained, in surplus, idle, or outranked.
fn check_leaving(case: &Case, policy: &Policy, node: &ObservedNode, held: &ObservedModel) -> Result<(), TestCaseError> {
    let profile = &case.placement.models[&held.id];
    if held.state == ModelState::Draining || profile.spot(&node.id).is_none() {
        return Ok(());
    }
    let serving = case.observed.nodes.iter().filter(|node| node.reach == Reach::Ready);
    let serving = serving
        .flat_map(|node| &node.models)
        .filter(|other| other.id == held.id && matches!(other.state, ModelState::Loaded | ModelState::Loading))
        .count();
    if serving > profile.replicas.max.max(1) {
        return Ok(());
    }
    let unused_ms = case.now.ms_since(held.last_used);
    let spare = serving > profile.replicas.min && profile.idle_unload_s.is_some_and(|limit| unused_ms >= limit * S);
    if strays(case, node, held) {
        return Ok(());
    }
    prop_assert!(profile.residency != Residency::Pinned || spare, "a pinned model leaves");
    prop_assert!(case.now.ms_since(held.since) >= policy.residency_ms_min, "it has just come");
    let asked = held.in_flight > 0 || case.demand.models.contains_key(&held.id);
    let idle = !asked && (unused_ms >= policy.idle_ms || profile.idle_unload_s.is_some_and(|limit| unused_ms >= limit * S));
    let rivals = case.placement.models.values().filter(|other| {
        other.spec.model_id != held.id && (other.replicas.min > 0 || case.demand.models.contains_key(&other.spec.model_id))
    });
    let best = rivals.map(|other| other.priority).max().unwrap_or(i32::MIN);
    let needed = profile.replicas.min > 0 && serving <= profile.replicas.min;
    let outranked = if needed { best > profile.priority } else { idle || best >= profile.priority };
    prop_assert!(outranked, "`{}` outranks everybody who could want its place on {}", held.id, node.id);
    Ok(())
}

/// Whether it has a proven place, and that is another one.
fn strays(case: &Case, node: &ObservedNode, held: &ObservedModel) -> bool {
    let homes: Vec<_> = case.placement.certificate.residents.iter().filter(|home| home.model == held.id).collect();
    !homes.is_empty() && !homes.iter().any(|home| home.host == node.id && home.devices == held.devices)
}

/// Memory after all loads, before anything has left, is within each device.
fn check_memory(case: &Case, actions: &[Action]) -> Result<(), TestCaseError> {
    let mut used: BTreeMap<(&NodeId, usize), u64> = BTreeMap::new();
    let mut loads: BTreeMap<(&NodeId, usize), usize> = BTreeMap::new();
    for node in &case.observed.nodes {
        for held in node.models.iter().filter(|held| !matches!(held.state, ModelState::Failed { .. })) {
            for index in &held.devices {
                *used.entry((&node.id, *index)).or_default() += footprint(&case.placement.models[&held.id]).0;
                *loads.entry((&node.id, *index)).or_default() += usize::from(held.state == ModelState::Loading);
            }
        }
    }
    let present = |action: &Action| {
        let node = case.observed.nodes.iter().find(|node| node.id == action.node);
        node.is_some_and(|node| node.models.iter().any(|held| Some(&held.id) == action.model() && held.state == ModelState::Draining))
    };
    for action in actions.iter().filter(|action| matches!(action.step, Step::Load { .. }) && !present(action)) {
        let model = action.model().expect("a load has a model");
        for index in &action.devices {
            *used.entry((&action.node, *index)).or_default() += footprint(&case.placement.models[model]).0;
            let loads = loads.entry((&action.node, *index)).or_default();
            prop_assert_eq!(*loads, 0, "two loads at once on {}:{}", &action.node, index);
            *loads += 1;
        }
    }
    for ((node, index), used) in used {
        let total = case.placement.hosts[node].devices[index].memory_mb;
        prop_assert!(used <= total, "{}:{} would hold {} of {}", node, index, used, total);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_answer_breaks_a_rule(case in any_case()) {
        let policy = Policy::default();
        let desired = Desired::new(case.placement.clone(), policy.clone());
        let actions = decide(&desired, &case.observed, &case.demand, case.now);
        check(&case, &policy, &actions)?;
        prop_assert_eq!(&actions, &decide(&desired, &case.observed, &case.demand, case.now));
    }
}
