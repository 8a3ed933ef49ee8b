//! Beside the obvious form, which compares all that is fit and has all of them draw.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Instant;

use cortex_core::{ModelStatus, NodeId, Placement};
use proptest::prelude::*;

use super::*;
use crate::fleet::tests::{fleet_of, observation};
use crate::fleet::{Fleet, LoadGuard};

fn choose_plainly(replicas: Replicas<'_>, request: &RouteRequest<'_>, reach: fn(&Reach) -> bool) -> Option<usize> {
    let fit: Vec<usize> = walk(replicas.all.len(), request.turn).filter(|index| is_fit(replicas, request, reach, *index)).collect();
    let least = fit.iter().copied().min_by_key(|index| score(replicas, *index))?;
    let tokens = |index: usize| replicas.at(index).1.load.tokens();
    let home = |key| {
        let allowed = fit.iter().copied().filter(|index| affinity_allows(tokens(*index), tokens(least)));
        allowed.max_by_key(|index| affinity(key, replicas.all[*index].lot))
    };
    Some(request.affinity.and_then(home).unwrap_or(least))
}

fn ready(reach: &Reach) -> bool {
    *reach == Reach::Ready
}

/// What one node is drawn with.
#[derive(Clone, Copy, Debug)]
struct Drawn {
    loaded: bool,
    ejected: bool,
    tried: bool,
    tokens: u64,
}

const IDLE: Drawn = Drawn { loaded: true, ejected: false, tried: false, tokens: 0 };

fn any_node() -> impl Strategy<Value = Drawn> {
    let odds = |one_in: u32| (0..one_in).prop_map(|drawn| drawn == 0);
    let tokens = prop_oneof![Just(0), 0..4u64, 0..40_000u64];
    (odds(4), odds(4), odds(6), tokens).prop_map(|(absent, ejected, tried, tokens)| Drawn { loaded: !absent, ejected, tried, tokens })
}

fn name(at: usize) -> String {
    format!("node-{at:04}")
}

/// Nodes of which all that are `loaded` have model `m`, and the work that is open on them.
fn fleet(drawn: &[Drawn]) -> (Fleet, Vec<LoadGuard>) {
    let names: Vec<String> = (0..drawn.len()).map(name).collect();
    let mut fleet = fleet_of(&names.iter().map(String::as_str).collect::<Vec<_>>(), Placement::default());
    for (node, name) in drawn.iter().zip(&names) {
        let status = if node.loaded { ModelStatus::Loaded } else { ModelStatus::Available };
        fleet = fleet.observed(&name.as_str().into(), &observation(&[("m", status)]));
        if node.ejected {
            fleet = fleet.ejected(&name.as_str().into(), "refused", Instant::now());
        }
    }
    let open = fleet.replicas("m").zip(drawn).map(|((node, replica), drawn)| LoadGuard::take(&node.load, &replica.load, drawn.tokens));
    let open = open.collect();
    (fleet, open)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Few replicas are chosen among as the obvious form does; of many, one is chosen whenever one is fit, as many as the sample has are
    /// no less busy, and a home that the obvious form prefers is preferred.
    #[test]
    fn the_choice_is_as_good_as_the_obvious_one(
        drawn in prop_oneof![prop::collection::vec(any_node(), 1..=HOMES_MAX), prop::collection::vec(any_node(), 1..120)],
        affinity in prop::option::of(any::<u64>()),
        turn in 0..100_000usize,
    ) {
        let (fleet, _open) = fleet(&drawn);
        let tried: Vec<NodeId> = drawn.iter().enumerate().filter(|(_, node)| node.tried).map(|(at, _)| name(at).as_str().into()).collect();
        let request = RouteRequest { model: "m", tried: &tried, affinity, turn };
        let replicas = fleet.replicas_of("m");
        let (chosen, plain) = (choose(replicas, &request, ready), choose_plainly(replicas, &request, ready));
        if drawn.len() <= HOMES_MAX || (affinity.is_none() && drawn.len() <= SAMPLE_MAX) {
            prop_assert_eq!(chosen, plain);
        }
        prop_assert_eq!(chosen.is_some(), plain.is_some());
        let Some(chosen) = chosen else { return Ok(()) };
        let fit: Vec<usize> = (0..drawn.len()).filter(|at| is_fit(replicas, &request, ready, *at)).collect();
        prop_assert!(fit.contains(&chosen));
        let tokens = |at: usize| replicas.at(at).1.load.tokens();
        let below = |at: &&usize| score(replicas, chosen) <= score(replicas, **at) || affinity_allows(tokens(chosen), tokens(**at));
        prop_assert!(fit.iter().filter(below).count() >= fit.len().min(SAMPLE_MAX));
        let first = |key| fit.iter().copied().max_by_key(|at| super::affinity(key, replicas.all[*at].lot));
        if let Some(home) = affinity.and_then(first).filter(|home| Some(*home) == plain && homes_of(replicas, affinity).contains(home)) {
            prop_assert_eq!(chosen, home);
        }
    }
}

fn homes_of(replicas: Replicas<'_>, key: Option<u64>) -> Vec<usize> {
    key.map_or_else(Vec::new, |key| homes(replicas, key).into_iter().flatten().collect())
}

#[test]
fn homes_are_the_highest_lots() {
    let mut drawn = [IDLE; 100];
    drawn.iter_mut().step_by(3).for_each(|node| node.loaded = false);
    for (few, len) in [(3, 2), (9, 6), (100, HOMES_MAX)] {
        let (fleet, _open) = fleet(&drawn[..few]);
        let replicas = fleet.replicas_of("m");
        for key in 0..200 {
            let mut sorted: Vec<usize> = (0..few).filter(|at| drawn[*at].loaded).collect();
            sorted.sort_by_key(|at| Reverse(affinity(key, replicas.all[*at].lot)));
            sorted.truncate(HOMES_MAX);
            assert_eq!(homes_of(replicas, Some(key)), sorted);
            assert_eq!(sorted.len(), len);
        }
    }
}

#[test]
fn a_walk_meets_every_number_once() {
    for len in [0, 1, 2, 3, 8, 31, 32, 33, 64, 100, 1000, 1024, 9973] {
        for turn in [0, 1, len / 2, len, 3 * len + 1, 7 * len + 5, 1_000_003] {
            let met: Vec<usize> = walk(len, turn).collect();
            assert_eq!(met.first().copied(), (len > 0).then(|| turn % len));
            assert_eq!((met.len(), met.into_iter().collect::<BTreeSet<_>>().len()), (len, len), "{len} from {turn}");
        }
    }
}

/// Requests of uneven size come and end in an order that has nothing to do with where they are; the busiest of many replicas stays near
/// the mean, as when all are compared.
#[test]
fn many_replicas_stay_even() {
    const NODES: usize = 300;
    const OPEN: usize = 10 * NODES;
    let (fleet, _none) = fleet(&[IDLE; NODES]);
    let replicas = fleet.replicas_of("m");
    let mut open: Vec<LoadGuard> = Vec::new();
    let mut most = 0;
    for turn in 0..10 * OPEN {
        let request = RouteRequest { model: "m", tried: &[], affinity: None, turn };
        let (node, replica) = replicas.at(choose(replicas, &request, ready).unwrap());
        let drawn = affinity(7, turn as u64) as usize;
        let guard = LoadGuard::take(&node.load, &replica.load, 50 + drawn as u64 % 100);
        if open.len() < OPEN {
            open.push(guard);
        } else {
            open[(drawn >> 8) % OPEN] = guard;
            most = most.max(replica.load.tokens());
        }
    }
    let all: u64 = replicas.all.iter().map(|replica| replica.load.tokens()).sum();
    let mean = all / NODES as u64;
    assert!(most <= mean + mean / 4, "{most} at most, {mean} in the mean");
}

/// One prefix that everybody has fills its homes up to the bound, and then the others.
#[test]
fn a_prefix_that_all_share_overloads_nobody() {
    let (fleet, _none) = fleet(&[IDLE; 200]);
    let replicas = fleet.replicas_of("m");
    let mut open: Vec<LoadGuard> = Vec::new();
    for turn in 0..4000 {
        let request = RouteRequest { model: "m", tried: &[], affinity: Some(11), turn };
        let (node, replica) = replicas.at(choose(replicas, &request, ready).unwrap());
        open.push(LoadGuard::take(&node.load, &replica.load, 1_000));
    }
    let mut tokens: Vec<u64> = replicas.all.iter().map(|replica| replica.load.tokens()).collect();
    tokens.sort_unstable();
    let (others, homes) = tokens.split_at(200 - HOMES_MAX);
    let busiest = others[others.len() - 1];
    assert!(busiest - others[0] <= 4_000, "{others:?}");
    assert!(homes[0] > busiest && affinity_allows(homes[HOMES_MAX - 1] - 1_000, busiest), "{homes:?} beside {busiest}");
}
