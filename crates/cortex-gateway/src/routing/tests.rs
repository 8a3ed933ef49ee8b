use std::time::Instant;

use cortex_core::{ModelStatus, Placement};

use super::*;
use crate::fleet::tests::{fleet_of, observation};

const AVAILABLE: ModelStatus = ModelStatus::Available;
const LOADED: ModelStatus = ModelStatus::Loaded;
const LOADING: ModelStatus = ModelStatus::Loading { percent: 3 };

/// Nodes `a`, `b`, … with model `m` in these states; an ejected node is written as `!`.
fn fleet(nodes: &[(&str, ModelStatus)]) -> Fleet {
    let names: Vec<&str> = nodes.iter().map(|(name, _)| name.trim_start_matches('!')).collect();
    let mut fleet = fleet_of(&names, Placement::default());
    for ((written, status), name) in nodes.iter().zip(names) {
        fleet = fleet.observed(&name.into(), &observation(&[("m", status.clone())]));
        if written.starts_with('!') {
            fleet = fleet.ejected(&name.into(), "refused", Instant::now());
        }
    }
    fleet
}

/// `serve <node>`, `load` or the error.
fn decide(fleet: &Fleet, tried: &[&str], turn: usize) -> String {
    let tried: Vec<NodeId> = tried.iter().map(|name| NodeId::from(*name)).collect();
    match route(fleet, &RouteRequest { model: "m", tried: &tried, affinity: None, turn }) {
        Ok(Route::Serve(target)) => format!("serve {}", target.node.id),
        Ok(Route::ColdLoad) => "load".into(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_request_goes_where_it_is_served_best() {
    type Case<'a> = (&'a [(&'a str, ModelStatus)], &'a [&'a str], &'a str);
    let cases: &[Case<'_>] = &[
        (&[("a", LOADED)], &[], "serve a"),
        (&[("a", AVAILABLE), ("b", LOADED)], &[], "serve b"),
        (&[("!a", LOADED), ("b", LOADED)], &[], "serve b"),
        (&[("a", AVAILABLE), ("b", LOADING)], &[], "load"),
        (&[("a", ModelStatus::Failed { reason: String::new() }), ("b", AVAILABLE)], &[], "load"),
        (&[("a", ModelStatus::Failed { reason: String::new() })], &[], "load"),
        (&[("a", LOADED), ("b", LOADED)], &["a"], "serve b"),
        (&[("a", LOADED), ("b", AVAILABLE)], &["a"], "every node that could serve `m` failed this request"),
        (&[("!a", LOADED), ("b", AVAILABLE)], &[], "load"),
        (&[("!a", LOADED)], &[], "serve a"),
        (&[("!a", LOADED)], &["a"], "every node that could serve `m` failed this request"),
        (&[("a", LOADED), ("b", LOADED)], &["a", "b"], "every node that could serve `m` failed this request"),
        (&[("!a", AVAILABLE)], &[], "no node can serve `m` now: a is ejected (refused)"),
        (&[], &[], "the model `m` is not known to any node"),
    ];
    for (nodes, tried, expected) in cases {
        assert_eq!(decide(&fleet(nodes), tried, 0), *expected, "{nodes:?} without {tried:?}");
    }
}

#[test]
fn an_unknown_model_is_not_denied_while_a_node_has_not_answered() {
    assert_eq!(decide(&fleet_of(&["a"], Placement::default()), &[], 0), "no node can serve `m` now: a has not answered yet");
}

#[test]
fn the_least_busy_replica_is_first_and_equal_ones_take_turns() {
    let fleet = fleet(&[("a", LOADED), ("b", LOADED), ("c", LOADED)]);
    assert_eq!([0, 1, 2, 3].map(|turn| decide(&fleet, &[], turn)), ["serve a", "serve b", "serve c", "serve a"]);
    let occupy = |turn| match route(&fleet, &RouteRequest { model: "m", tried: &[], affinity: None, turn }) {
        Ok(Route::Serve(target)) => target.occupy(1),
        other => panic!("{other:?}"),
    };
    let guards = [occupy(0), occupy(0)];
    assert_eq!([0, 1, 2].map(|turn| decide(&fleet, &[], turn)), ["serve c"; 3]);
    drop(guards);
    assert_eq!(decide(&fleet, &[], 0), "serve a");
}

/// Where a request with this affinity goes, and its guard over `tokens`.
fn with_affinity(fleet: &Fleet, key: u64, tokens: u64) -> (String, LoadGuard) {
    match route(fleet, &RouteRequest { model: "m", tried: &[], affinity: Some(key), turn: 0 }) {
        Ok(Route::Serve(target)) => (target.node.id.to_string(), target.occupy(tokens)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn related_requests_stay_together_until_their_node_is_much_busier() {
    let fleet = fleet(&[("a", LOADED), ("b", LOADED), ("c", LOADED)]);
    for key in 0..20 {
        let mut guards = Vec::new();
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..30 {
            let (node, guard) = with_affinity(&fleet, key, 4_096);
            guards.push(guard);
            *counts.entry(node).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 3, "one key alone does not overload one node: {counts:?}");
        let least = counts.values().min().unwrap();
        let most = counts.values().max().unwrap();
        assert!(most - least <= least / 4 + 3, "{counts:?}");
    }
    let homes: Vec<String> = (0..60).map(|key| with_affinity(&fleet, key, 0).0).collect();
    assert_eq!(homes, (0..60).map(|key| with_affinity(&fleet, key, 0).0).collect::<Vec<_>>());
    for node in ["a", "b", "c"] {
        assert!(homes.iter().filter(|home| *home == node).count() > 8, "keys are spread: {homes:?}");
    }
}

#[test]
fn a_node_that_goes_moves_only_its_own_keys() {
    let before = fleet(&[("a", LOADED), ("b", LOADED), ("c", LOADED)]);
    let after = before.ejected(&"b".into(), "refused", Instant::now());
    for key in 0..60 {
        let home = with_affinity(&before, key, 0).0;
        assert!(home == "b" || with_affinity(&after, key, 0).0 == home, "{key}");
    }
}

#[test]
fn each_error_has_its_status_and_tells_when_to_come_back() {
    let cases = [
        (RouteError::UnknownModel("m".into()), 404, None),
        (RouteError::Unreachable { model: "m".into(), why: "a is draining".into() }, 503, Some(1)),
        (RouteError::Exhausted("m".into()), 502, Some(1)),
    ];
    for (error, status, retry_after_s) in cases {
        let api = ApiError::from(error.clone());
        assert_eq!((api.status, api.retry_after_s), (status, retry_after_s), "{error}");
    }
}

/// The time is printed, not judged: it depends on the machine. `some` has ten replicas, `all` one on every node.
#[test]
fn a_decision_among_a_thousand_nodes() {
    const NODES: usize = 1000;
    const DECISIONS: usize = 2000;
    let names: Vec<String> = (0..NODES).map(|at| format!("node-{at:04}")).collect();
    let mut fleet = fleet_of(&names.iter().map(String::as_str).collect::<Vec<_>>(), Placement::default());
    for (at, name) in names.iter().enumerate() {
        let models: &[_] = if at % 100 == 0 { &[("some", LOADED), ("all", LOADED)] } else { &[("all", LOADED)] };
        fleet = fleet.observed(&name.as_str().into(), &observation(models));
    }
    for (model, replicas, keyed) in [("some", 10, false), ("some", 10, true), ("all", NODES, false), ("all", NODES, true)] {
        let mut seen = std::collections::BTreeSet::new();
        let mut times: Vec<_> = (0..DECISIONS)
            .map(|turn| {
                let affinity = keyed.then(|| score::affinity(1, turn as u64));
                let request = RouteRequest { model, tried: &[], affinity, turn };
                let started = Instant::now();
                let route = route(&fleet, &request);
                let time = started.elapsed();
                let Ok(Route::Serve(target)) = route else { panic!("{model} is served") };
                seen.insert(target.node.id.clone());
                time
            })
            .collect();
        assert!(seen.len() == replicas || keyed, "each replica has its turn");
        assert!(seen.len() > replicas / 2, "keys are spread");
        times.sort_unstable();
        let by = if keyed { "by prefix" } else { "by load" };
        let (middle, longest) = (times[DECISIONS / 2], times[DECISIONS - 1]);
        println!("routing {replicas} replicas among {NODES} nodes {by}: middle {middle:?}, longest {longest:?}");
    }
}
