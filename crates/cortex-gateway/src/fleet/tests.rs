use std::time::Duration;

use cortex_core::{ModelHealth, ModelSpec, PlacedModel};

use super::*;

/// Nodes of these names that nobody has heard of.
pub(crate) fn fleet_of(names: &[&str], placement: Placement) -> Fleet {
    let entry = |name: &&str| {
        let endpoint = Endpoint::parse(&format!("http://{name}:13131")).expect("a name is a host");
        NeuronEntry { name: (*name).into(), endpoint, ca: None }
    };
    Fleet::new(&names.iter().map(entry).collect::<Vec<_>>(), Arc::new(placement))
}

/// A poll's answers: these models, everything else plain.
pub(crate) fn observation(models: &[(&str, ModelStatus)]) -> Observation {
    let discovery = Discovery {
        hostname: "host".into(),
        os: "os".into(),
        version: "0".into(),
        boot_id: "boot-1".into(),
        driver_version: None,
        cuda_version: None,
        gpu_note: None,
        devices: Vec::new(),
        harnesses: Vec::new(),
    };
    let report = |(id, status): &(&str, ModelStatus)| ModelReport { status: status.clone(), ..unreported(&(*id).into()) };
    let health = Health { uptime_s: 1.0, ready: true, devices: Vec::new(), models: Vec::new() };
    Observation { discovery, health, models: models.iter().map(report).collect(), actions_before: 0, at: Instant::now() }
}

fn standings(fleet: &Fleet, model: &str) -> Vec<(String, Standing)> {
    fleet.replicas(model).map(|(node, replica)| (node.id.to_string(), replica.standing)).collect()
}

fn count(generated: u64) -> ModelHealth {
    ModelHealth {
        id: "m".into(),
        servable: true,
        running: 0,
        waiting: 0,
        kv_blocks_used: 0,
        kv_blocks_total: 0,
        generated_tokens_total: generated,
        prompt_tokens_total: 0,
        cached_tokens_total: 0,
    }
}

#[test]
fn an_update_leaves_the_old_fleet_as_it_was() {
    let before = fleet_of(&["a"], Placement::default());
    let after = before.observed(&"a".into(), &observation(&[("m", ModelStatus::Loaded)]));
    assert_eq!(before.nodes()[0].reach, Reach::Unknown);
    assert_eq!(standings(&before, "m"), []);
    assert_eq!(after.nodes()[0].reach, Reach::Ready);
    assert_eq!(standings(&after, "m"), [("a".into(), Standing::Loaded)]);
}

#[test]
fn a_node_that_flaps_must_answer_twice_as_many_probes_each_time() {
    let (start, good) = (Instant::now(), observation(&[("m", ModelStatus::Loaded)]));
    let probes = |fleet: &mut Fleet| {
        let needed = (1..100).find(|_| {
            *fleet = fleet.observed(&"a".into(), &good);
            fleet.nodes()[0].reach == Reach::Ready
        });
        needed.unwrap()
    };
    let mut fleet = fleet_of(&["a"], Placement::default());
    let seconds = |s| start + Duration::from_secs(s);
    let needed = [0, 1, 2, 3, 4, 5, 6, 7, 68].map(|s| {
        fleet = fleet.ejected(&"a".into(), "refused", seconds(s));
        probes(&mut fleet)
    });
    assert_eq!(needed, [1, 2, 4, 8, 16, 32, 32, 32, 1]);

    fleet = fleet.ejected(&"a".into(), "refused", seconds(69)).observed(&"a".into(), &good);
    fleet = fleet.ejected(&"a".into(), "refused", seconds(70));
    assert_eq!(probes(&mut fleet), 2, "only good probes in a row count");
}

#[test]
fn failing_requests_eject_a_node_only_while_most_nodes_are_well() {
    let names = ["a", "b", "c", "d"];
    let good = observation(&[("m", ModelStatus::Loaded)]);
    let ready = names.iter().fold(fleet_of(&names, Placement::default()), |fleet, name| fleet.observed(&(*name).into(), &good));
    let failing = names.iter().fold(ready, |fleet, name| fleet.failing(&(*name).into(), "resets", Instant::now()));
    let out: Vec<bool> = failing.nodes().iter().map(|node| matches!(node.reach, Reach::Ejected { .. })).collect();
    assert_eq!(out, [true, true, false, false]);
    let lone = fleet_of(&["a"], Placement::default()).observed(&"a".into(), &good).failing(&"a".into(), "resets", Instant::now());
    assert_eq!(lone.nodes()[0].reach, Reach::Ready, "the only node is never given up for failing");
}

#[test]
fn a_poll_that_began_before_an_action_says_nothing_about_models() {
    let stale = observation(&[("m", ModelStatus::Available)]);
    let fleet = fleet_of(&["a"], Placement::default()).observed(&"a".into(), &stale);
    let loaded = fleet.model_standing(&"a".into(), &"m".into(), &ModelStatus::Loaded);
    assert_eq!(standings(&loaded.observed(&"a".into(), &stale), "m"), [("a".into(), Standing::Loaded)]);
    let fresh = Observation { actions_before: 1, ..stale.clone() };
    assert_eq!(standings(&loaded.observed(&"a".into(), &fresh), "m"), [("a".into(), Standing::Available)]);
    let mut restarted = stale;
    restarted.discovery.boot_id = "boot-2".into();
    assert_eq!(standings(&loaded.observed(&"a".into(), &restarted), "m"), [("a".into(), Standing::Available)]);
}

#[test]
fn open_requests_are_counted_through_every_update() {
    let id = NodeId::from("a");
    let fleet = fleet_of(&["a"], Placement::default()).observed(&id, &observation(&[("m", ModelStatus::Loaded)]));
    let (node, replica) = fleet.replicas("m").next().unwrap();
    let guard = LoadGuard::take(&node.load, &replica.load, 1);
    let later = fleet.ejected(&id, "gone", Instant::now()).model_standing(&id, &"m".into(), &ModelStatus::Available);
    let outstanding =
        |fleet: &Fleet| fleet.replicas("m").map(|(node, replica)| (node.load.outstanding(), replica.load.outstanding())).next();
    assert_eq!(outstanding(&later), Some((1, 1)));
    drop(guard);
    assert_eq!(outstanding(&later), Some((0, 0)));
}

#[test]
fn silence_ejects_after_the_limit_and_one_answer_brings_back() {
    let (id, now) = (NodeId::from("a"), Instant::now());
    let mut fleet = fleet_of(&["a"], Placement::default()).observed(&id, &observation(&[]));
    for _ in 0..2 {
        fleet = fleet.poll_failed(&id, "no answer", 3, now);
        assert_eq!(fleet.nodes()[0].reach, Reach::Ready);
    }
    fleet = fleet.poll_failed(&id, "no answer", 3, now);
    assert_eq!(fleet.nodes()[0].reach, Reach::Ejected { reason: "no answer".into(), since: now });
    let later = now + Duration::from_secs(9);
    fleet = fleet.ejected(&id, "refused", later);
    assert_eq!(fleet.nodes()[0].reach, Reach::Ejected { reason: "refused".into(), since: now });
    fleet = fleet.observed(&id, &observation(&[])).poll_failed(&id, "no answer", 3, later);
    assert_eq!(fleet.nodes()[0].reach, Reach::Ready);
}

#[test]
fn a_declared_model_stands_where_it_may_be_loaded_and_nowhere_else() {
    let placed = |model: &str, nodes: &[&str]| PlacedModel {
        spec: ModelSpec::new(model),
        nodes: nodes.iter().map(|name| NodeId::from(*name)).collect(),
    };
    let fleet = fleet_of(&["a", "b"], Placement::new([placed("m", &["b"]), placed("n", &[])], BTreeMap::new()));
    let fleet = fleet.observed(&"a".into(), &observation(&[("m", ModelStatus::Available), ("n", ModelStatus::Loaded)]));
    assert_eq!(standings(&fleet, "m"), [("b".into(), Standing::Available)]);
    assert_eq!(standings(&fleet, "n"), [("a".into(), Standing::Loaded), ("b".into(), Standing::Available)]);
    let fleet = fleet.observed(&"a".into(), &observation(&[("m", ModelStatus::Loaded)]));
    assert_eq!(standings(&fleet, "m")[0], ("a".into(), Standing::Loaded), "what is in memory serves, declared or not");
}

#[test]
fn the_rate_is_counted_between_two_polls_of_one_boot() {
    let id = NodeId::from("a");
    let at = Instant::now();
    let with = |generated: u64, seconds: u64, boot: &str| {
        let mut observation = observation(&[]);
        observation.health.models = vec![count(generated)];
        observation.at = at + Duration::from_secs(seconds);
        observation.discovery.boot_id = boot.into();
        observation
    };
    let rate = |fleet: &Fleet| fleet.nodes()[0].facts.as_ref().and_then(|facts| facts.tokens_per_second);
    let first = fleet_of(&["a"], Placement::default()).observed(&id, &with(100, 0, "x"));
    assert_eq!(rate(&first), None);
    assert_eq!(rate(&first.observed(&id, &with(400, 2, "x"))), Some(150.0));
    assert_eq!(rate(&first.observed(&id, &with(30, 2, "x"))), Some(0.0), "an unload takes its count away");
    assert_eq!(rate(&first.observed(&id, &with(400, 2, "y"))), None);
}
