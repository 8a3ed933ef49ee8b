//! One call of `decide`, case by case.

use cortex_placement::{Action, Demand, Desired, Eviction, Mode, ModelState, Moment, Observed, ObservedModel, Policy, Reach, decide};

use crate::fleet::{S, desired, holding, loaded, model, node, observed, placement};

/// The actions as `load a on x:0`, one a line.
fn told(desired: &Desired, observed: &Observed, demand: &Demand, now: Moment) -> String {
    decide(desired, observed, demand, now).iter().map(Action::to_string).collect::<Vec<_>>().join("\n")
}

fn used(model: ObservedModel, in_flight: usize, last_used: u64) -> ObservedModel {
    ObservedModel { in_flight, last_used: Moment(last_used), ..model }
}

fn in_state(model: ObservedModel, state: ModelState, since: u64) -> ObservedModel {
    ObservedModel { state, since: Moment(since), ..model }
}

#[test]
fn residents_go_to_their_proven_places() {
    let wants = desired(&[("x", &[100, 100])], &[model("a", 60).home("x", &[1]), model("b", 60).home("x", &[0]).pinned()]);
    let fleet = observed(vec![node("x", &[100, 100])]);
    assert_eq!(told(&wants, &fleet, &Demand::none(), Moment(0)), "load b on x:0\nload a on x:1");
}

#[test]
fn what_is_there_already_is_left_alone() {
    let wants = desired(&[("x", &[100]), ("y", &[100])], &[model("a", 60).home("x", &[0]).on(&["x", "y"])]);
    for holder in ["x", "y"] {
        let mut nodes = vec![node("x", &[100]), node("y", &[100])];
        nodes.iter_mut().filter(|node| node.id.as_str() == holder).for_each(|node| node.models = vec![loaded("a", &[0])]);
        assert_eq!(told(&wants, &observed(nodes), &Demand::none(), Moment(3600 * S)), "", "{holder}");
    }
}

#[test]
fn a_device_loads_one_model_at_a_time() {
    let wants = desired(&[("x", &[100])], &[model("a", 30).home("x", &[0]), model("b", 30).home("x", &[0])]);
    let fleet = observed(vec![node("x", &[100])]);
    assert_eq!(told(&wants, &fleet, &Demand::none(), Moment(0)), "load a on x:0");
}

#[test]
fn a_resident_moves_when_its_host_stays_away() {
    let wants = desired(&[("x", &[100]), ("y", &[100])], &[model("a", 60).home("x", &[0]).on(&["x", "y"])]);
    let mut x = holding(node("x", &[100]), vec![loaded("a", &[0])]);
    x.reach = Reach::Away { since: Moment(0) };
    let fleet = observed(vec![x, node("y", &[100])]);
    assert_eq!(told(&wants, &fleet, &Demand::none(), Moment(9 * S)), "");
    assert_eq!(told(&wants, &fleet, &Demand::none(), Moment(11 * S)), "load a on y:0");
    assert_eq!(told(&wants, &fleet, &Demand::none().with("a", 1, Moment(2 * S)), Moment(3 * S)), "load a on y:0");
}

#[test]
fn a_host_holds_one_replica_of_a_model() {
    let hosts: [(&str, &[u64]); 2] = [("x", &[100, 100]), ("y", &[100])];
    let wants = desired(&hosts, &[model("a", 60).home("x", &[0]).home("y", &[0])]);
    let mut y = node("y", &[100]);
    y.reach = Reach::Away { since: Moment(0) };
    let fleet = observed(vec![node("x", &[100, 100]), y]);
    assert_eq!(told(&wants, &fleet, &Demand::none(), Moment(60 * S)), "load a on x:0");
}

#[test]
fn a_host_for_demand_only_gets_no_resident() {
    let a = model("a", 60).home("x", &[0]).on(&["x"]).mode("y", Mode::OnDemand);
    let wants = desired(&[("x", &[100]), ("y", &[100])], &[a]);
    let fleet = observed(vec![node("y", &[100])]);
    assert_eq!(told(&wants, &fleet, &Demand::none(), Moment(60 * S)), "");
    assert_eq!(told(&wants, &fleet, &Demand::none().with("a", 1, Moment(0)), Moment(60 * S)), "load a on y:0");
}

#[test]
fn a_preloaded_host_gets_its_replica_even_if_another_has_one() {
    let a = model("a", 60).home("x", &[0]).replicas_max(2).mode("x", Mode::Preload).mode("y", Mode::Auto);
    let wants = desired(&[("x", &[100]), ("y", &[100])], &[a]);
    let fleet = observed(vec![node("x", &[100]), holding(node("y", &[100]), vec![loaded("a", &[0])])]);
    assert_eq!(told(&wants, &fleet, &Demand::none(), Moment(0)), "load a on x:0");
}

#[test]
fn room_is_made_by_who_was_unused_the_longest() {
    let wants = desired(&[("x", &[100])], &[model("a", 40), model("b", 40), model("c", 40)]);
    let fleet = observed(vec![holding(node("x", &[100]), vec![used(loaded("a", &[0]), 0, 50 * S), used(loaded("b", &[0]), 0, 20 * S)])]);
    assert_eq!(told(&wants, &fleet, &Demand::none().with("c", 2, Moment(59 * S)), Moment(60 * S)), "unload b from x:0");
}

#[test]
fn room_is_made_by_the_lowest_priority_where_the_policy_says_so() {
    let models = [model("a", 40).priority(5), model("b", 40).priority(6), model("c", 40).priority(9)];
    let policy = Policy { eviction: Eviction::Priority, ..Policy::default() };
    let wants = Desired::new(placement(&[("x", &[100])], &models), policy);
    let fleet = observed(vec![holding(node("x", &[100]), vec![used(loaded("a", &[0]), 0, 50 * S), used(loaded("b", &[0]), 0, 20 * S)])]);
    assert_eq!(told(&wants, &fleet, &Demand::none().with("c", 1, Moment(59 * S)), Moment(60 * S)), "unload a from x:0");
}

#[test]
fn no_more_is_made_to_leave_than_the_need_asks_for() {
    let wants = desired(&[("x", &[100])], &[model("small", 10), model("large", 80), model("new", 70)]);
    let held = vec![used(loaded("small", &[0]), 0, 10 * S), used(loaded("large", &[0]), 0, 20 * S)];
    let fleet = observed(vec![holding(node("x", &[100]), held)]);
    assert_eq!(told(&wants, &fleet, &Demand::none().with("new", 1, Moment(0)), Moment(60 * S)), "unload large from x:0");
}

#[test]
fn a_model_in_use_is_drained_first_and_loads_wait_for_the_memory() {
    let wants = desired(&[("x", &[100])], &[model("a", 80), model("b", 80)]);
    let demand = Demand::none().with("b", 1, Moment(59 * S));
    let busy = used(loaded("a", &[0]), 2, 60 * S);
    let states = [
        (busy.clone(), "drain a on x:0"),
        (in_state(busy.clone(), ModelState::Draining, 60 * S), ""),
        (in_state(used(busy.clone(), 0, 60 * S), ModelState::Draining, 60 * S), "unload a from x:0"),
        (in_state(used(busy, 0, 60 * S), ModelState::Unloading, 60 * S), ""),
    ];
    for (a, expected) in states {
        let fleet = observed(vec![holding(node("x", &[100]), vec![a.clone()])]);
        assert_eq!(told(&wants, &fleet, &demand, Moment(60 * S)), expected, "{a:?}");
    }
    assert_eq!(told(&wants, &observed(vec![node("x", &[100])]), &demand, Moment(61 * S)), "load b on x:0");
}

#[test]
fn a_drained_model_comes_back_when_nobody_claims_its_place() {
    let wants = desired(&[("x", &[100])], &[model("a", 80), model("b", 80)]);
    let draining = in_state(used(loaded("a", &[0]), 1, 60 * S), ModelState::Draining, 60 * S);
    let fleet = observed(vec![holding(node("x", &[100]), vec![draining])]);
    let a_waits = Demand::none().with("a", 1, Moment(61 * S));
    assert_eq!(told(&wants, &fleet, &a_waits, Moment(62 * S)), "load a on x:0");
    assert_eq!(told(&wants, &fleet, &a_waits.with("b", 1, Moment(59 * S)), Moment(62 * S)), "", "b was first");
}

#[test]
fn who_may_be_displaced() {
    let pinned = model("a", 80).home("x", &[0]).pinned();
    let resident = model("a", 80).home("x", &[0]);
    let cases = [
        ("a pinned one never", pinned.clone().priority(1), 900, 60, ""),
        ("a resident by a higher priority", resident.clone().priority(99), 100, 60, "unload a from x:0"),
        ("a resident not by its equal", resident.priority(100), 100, 60, ""),
        ("one on demand by its equal", model("a", 80).priority(100), 100, 60, "unload a from x:0"),
        ("one on demand not by a lower priority", model("a", 80).priority(101), 100, 59, ""),
        ("unless nobody asked for it in a long time", model("a", 80).priority(101), 100, 60, "unload a from x:0"),
        ("nobody who has just come", model("a", 80), 100, 9, ""),
    ];
    for (who, a, priority, now_s, expected) in cases {
        let wants = desired(&[("x", &[100])], &[a, model("b", 80).priority(priority)]);
        let fleet = observed(vec![holding(node("x", &[100]), vec![loaded("a", &[0])])]);
        assert_eq!(told(&wants, &fleet, &Demand::none().with("b", 1, Moment(0)), Moment(now_s * S)), expected, "{who}");
    }
}

#[test]
fn a_resident_that_made_room_comes_back_after_the_one_that_outranks_it() {
    let wants = desired(&[("x", &[100])], &[model("a", 80).home("x", &[0]).priority(99), model("b", 80)]);
    let empty = observed(vec![node("x", &[100])]);
    assert_eq!(told(&wants, &empty, &Demand::none().with("b", 1, Moment(0)), Moment(60 * S)), "load b on x:0");
    assert_eq!(told(&wants, &empty, &Demand::none(), Moment(60 * S)), "load a on x:0");
    let equal = desired(&[("x", &[100])], &[model("a", 80).home("x", &[0]), model("b", 80)]);
    assert_eq!(told(&equal, &empty, &Demand::none().with("b", 1, Moment(0)), Moment(60 * S)), "load a on x:0");
}

#[test]
fn turns_grow_longer_while_models_swap() {
    let wants = desired(&[("x", &[100])], &[model("a", 80), model("b", 80)]);
    for (swaps, patience_s) in [(0, 10), (4, 20), (8, 40), (400, 80)] {
        let mut x = holding(node("x", &[100]), vec![loaded("a", &[0])]);
        x.swaps_recent = swaps;
        let fleet = observed(vec![x]);
        let demand = Demand::none().with("b", 1, Moment(0));
        assert_eq!(told(&wants, &fleet, &demand, Moment(patience_s * S - 1)), "", "{swaps}");
        assert_eq!(told(&wants, &fleet, &demand, Moment(patience_s * S)), "unload a from x:0", "{swaps}");
    }
}

#[test]
fn the_highest_priority_is_served_first_then_who_waits_longest() {
    let wants = desired(&[("x", &[100])], &[model("a", 80), model("b", 80), model("c", 80).priority(200)]);
    let fleet = observed(vec![node("x", &[100])]);
    let mut demand = Demand::none().with("a", 9, Moment(20)).with("b", 1, Moment(10));
    assert_eq!(told(&wants, &fleet, &demand, Moment(30)), "load b on x:0");
    demand = demand.with("c", 1, Moment(30));
    assert_eq!(told(&wants, &fleet, &demand, Moment(30)), "load c on x:0");
}

#[test]
fn a_split_model_needs_its_memory_on_each_of_its_devices() {
    let wants = desired(&[("x", &[100, 100, 100])], &[model("a", 60).tensor_parallel(2), model("b", 50).home("x", &[1])]);
    let fleet = observed(vec![holding(node("x", &[100, 100, 100]), vec![loaded("b", &[1])])]);
    assert_eq!(told(&wants, &fleet, &Demand::none().with("a", 1, Moment(0)), Moment(0)), "load a on x:0,2");
    let small = observed(vec![holding(node("x", &[100, 100]), vec![loaded("b", &[1])])]);
    assert_eq!(told(&wants, &small, &Demand::none().with("a", 1, Moment(0)), Moment(S)), "", "60 on x:1 are not free");
}

#[test]
fn memory_that_others_hold_or_a_model_was_seen_to_take_counts() {
    let wants = desired(&[("x", &[100])], &[model("a", 60)]);
    let demand = Demand::none().with("a", 1, Moment(0));
    let mut fleet = observed(vec![node("x", &[100])]);
    fleet.nodes[0].devices[0].foreign_mb = 41;
    assert_eq!(told(&wants, &fleet, &demand, Moment(0)), "");
    fleet.nodes[0].devices[0].foreign_mb = 40;
    assert_eq!(told(&wants, &fleet, &demand, Moment(0)), "load a on x:0");
    fleet.learned_mb.insert("a".into(), 61);
    assert_eq!(told(&wants, &fleet, &demand, Moment(0)), "");
}

#[test]
fn a_failed_load_goes_elsewhere_and_comes_back_later() {
    let wants = desired(&[("x", &[100]), ("y", &[50])], &[model("a", 60)]);
    let failed = |failures| in_state(loaded("a", &[]), ModelState::Failed { failures }, 0);
    let demand = Demand::none().with("a", 1, Moment(0));
    for (failures, spared_s) in [(1, 5), (2, 10), (3, 20)] {
        let fleet = observed(vec![holding(node("x", &[100]), vec![failed(failures)]), node("y", &[50])]);
        assert_eq!(told(&wants, &fleet, &demand, Moment(spared_s * S - 1)), "");
        assert_eq!(told(&wants, &fleet, &demand, Moment(spared_s * S)), "load a on x:0");
    }
    let larger = observed(vec![holding(node("x", &[100]), vec![failed(1)]), node("y", &[90])]);
    let anywhere = desired(&[("x", &[100]), ("y", &[90])], &[model("a", 60)]);
    assert_eq!(told(&anywhere, &larger, &demand, Moment(0)), "load a on y:0");
}

#[test]
fn an_idle_model_goes_when_its_time_is_up() {
    let wants = desired(&[("x", &[100])], &[model("a", 60).idle_unload(30)]);
    let fleet = |in_flight| observed(vec![holding(node("x", &[100]), vec![used(loaded("a", &[0]), in_flight, 10 * S)])]);
    assert_eq!(told(&wants, &fleet(0), &Demand::none(), Moment(39 * S)), "");
    assert_eq!(told(&wants, &fleet(0), &Demand::none(), Moment(40 * S)), "unload a from x:0");
    assert_eq!(told(&wants, &fleet(1), &Demand::none(), Moment(90 * S)), "");
}

#[test]
fn a_surplus_replica_goes_and_the_proven_one_stays() {
    let wants = desired(&[("x", &[100]), ("y", &[100])], &[model("a", 60).home("x", &[0])]);
    let fleet = observed(vec![
        holding(node("x", &[100]), vec![used(loaded("a", &[0]), 0, S)]),
        holding(node("y", &[100]), vec![used(loaded("a", &[0]), 1, 50 * S)]),
    ]);
    assert_eq!(told(&wants, &fleet, &Demand::none(), Moment(60 * S)), "drain a on y:0");
}

#[test]
fn a_resident_that_an_outage_moved_goes_home_when_it_is_in_the_way() {
    let [a, b] = [model("a", 60).home("x", &[0]), model("b", 80).witness("y", &[0])];
    let on_y = holding(node("y", &[100]), vec![loaded("a", &[0])]);
    let back = observed(vec![node("x", &[100]), on_y.clone()]);
    let home = observed(vec![holding(node("x", &[100]), vec![used(loaded("a", &[0]), 0, 60 * S)]), on_y.clone()]);
    let nobody = Demand::none();
    let b_waits = Demand::none().with("b", 1, Moment(0));
    for a in [a.clone().priority(300), a.clone().pinned()] {
        let wants = desired(&[("x", &[100]), ("y", &[100])], &[a, b.clone().on(&["y"])]);
        assert_eq!(told(&wants, &back, &nobody, Moment(60 * S)), "", "nobody needs its place");
        assert_eq!(told(&wants, &back, &b_waits, Moment(60 * S)), "load a on x:0", "it is never gone");
        assert_eq!(told(&wants, &home, &b_waits, Moment(60 * S)), "unload a from y:0");
    }
    let mut coming = home;
    coming.nodes[0].models[0].state = ModelState::Loading;
    let wants = desired(&[("x", &[100]), ("y", &[100])], &[a.priority(300), b.on(&["y"])]);
    assert_eq!(told(&wants, &coming, &b_waits, Moment(60 * S)), "", "it leaves once it serves at home");
}

#[test]
fn a_resident_on_the_wrong_device_of_its_host_leaves_for_the_right_one() {
    let wants = desired(&[("x", &[100, 50])], &[model("a", 40).home("x", &[1]).pinned(), model("b", 90).witness("x", &[0])]);
    let strayed = observed(vec![holding(node("x", &[100, 50]), vec![loaded("a", &[0])])]);
    let demand = Demand::none().with("b", 1, Moment(0));
    assert_eq!(told(&wants, &strayed, &demand, Moment(60 * S)), "unload a from x:0");
    let gone = observed(vec![node("x", &[100, 50])]);
    assert_eq!(told(&wants, &gone, &demand, Moment(60 * S)), "load a on x:1\nload b on x:0");
}

#[test]
fn residents_that_hold_each_others_places_come_home_all_the_same() {
    let [a, b] = [model("a", 60).home("x", &[0]).pinned(), model("b", 70).home("y", &[0]).pinned()];
    let wants = desired(&[("x", &[100]), ("y", &[100])], &[a, b, model("c", 35).witness("x", &[0]).on(&["x"])]);
    let held = |id| vec![loaded(id, &[0])];
    let crossed = observed(vec![holding(node("x", &[100]), held("b")), holding(node("y", &[100]), held("a"))]);
    let demand = Demand::none().with("c", 1, Moment(0));
    assert_eq!(told(&wants, &crossed, &demand, Moment(60 * S)), "unload a from y:0");
    let half = observed(vec![holding(node("x", &[100]), held("b")), node("y", &[100])]);
    assert_eq!(told(&wants, &half, &demand, Moment(60 * S)), "load b on y:0", "and not `a` again, where `b` is at home");
}

#[test]
fn a_resident_stays_where_it_is_when_that_would_help_nobody() {
    let a = model("a", 60).home("x", &[0]).priority(300);
    let wants = desired(&[("x", &[100]), ("y", &[100])], &[a, model("b", 80).witness("y", &[0]).on(&["y"]), model("c", 30).priority(900)]);
    let on_y = |c: ObservedModel| holding(node("y", &[100]), vec![loaded("a", &[0]), c]);
    let demand = Demand::none().with("b", 1, Moment(0));
    let away = Reach::Away { since: Moment(0) };
    let mut fleet = observed(vec![node("x", &[100]), on_y(loaded("c", &[0]))]);
    fleet.nodes[0].reach = away;
    assert_eq!(told(&wants, &fleet, &demand, Moment(60 * S)), "", "home is away");
    let roomy = desired(
        &[("x", &[100]), ("y", &[150])],
        &[model("a", 60).home("x", &[0]).priority(300), model("b", 80).witness("y", &[0]).on(&["y"]), model("c", 30).priority(900)],
    );
    let mut fleet = observed(vec![node("x", &[100]), on_y(used(loaded("c", &[0]), 1, 60 * S))]);
    fleet.nodes[1].devices[0].memory_mb = 150;
    assert_eq!(told(&roomy, &fleet, &demand, Moment(60 * S)), "", "it is `c` that has to end");
}

#[test]
fn a_full_model_grows_into_free_memory_only() {
    let a = model("a", 60).replicas_max(2).parallel(3);
    let wants = desired(&[("x", &[100]), ("y", &[100])], &[a, model("b", 60)]);
    let x = |open| holding(node("x", &[100]), vec![used(loaded("a", &[0]), open, 60 * S)]);
    let taken = holding(node("y", &[100]), vec![loaded("b", &[0])]);
    assert_eq!(told(&wants, &observed(vec![x(2), node("y", &[100])]), &Demand::none(), Moment(60 * S)), "");
    assert_eq!(told(&wants, &observed(vec![x(3), node("y", &[100])]), &Demand::none(), Moment(60 * S)), "load a on y:0");
    assert_eq!(told(&wants, &observed(vec![x(3), taken]), &Demand::none(), Moment(60 * S)), "");
}

#[test]
fn what_the_placement_does_not_want_leaves() {
    let fleet = observed(vec![holding(node("x", &[100]), vec![loaded("a", &[0]), used(loaded("stray", &[0]), 1, 0)])]);
    let models = [model("a", 30).on(&["y"])];
    let kept = desired(&[("x", &[100]), ("y", &[100])], &models);
    assert_eq!(told(&kept, &fleet, &Demand::none(), Moment(0)), "unload a from x:0");
    let strict = Policy { unload_undeclared: true, ..Policy::default() };
    let strict = Desired::new(placement(&[("x", &[100]), ("y", &[100])], &models), strict);
    assert_eq!(told(&strict, &fleet, &Demand::none(), Moment(0)), "unload a from x:0\ndrain stray on x:0");
}

#[test]
fn a_worn_node_is_rebuilt_when_it_is_quiet_and_alone() {
    let wants = desired(&[("x", &[100]), ("y", &[100])], &[model("a", 60)]);
    let worn = |id: &str, cycles, open| {
        let mut node = holding(node(id, &[100]), vec![used(loaded("a", &[0]), open, 60 * S)]);
        node.cycles = cycles;
        node
    };
    let told = |nodes| told(&wants, &observed(nodes), &Demand::none(), Moment(5 * S));
    assert_eq!(told(vec![worn("x", 49, 0)]), "");
    assert_eq!(told(vec![worn("x", 50, 0)]), "rebuild the memory of x");
    assert_eq!(told(vec![worn("x", 50, 1)]), "");
    assert_eq!(told(vec![worn("x", 100, 1)]), "rebuild the memory of x");
    assert_eq!(told(vec![worn("x", 50, 0), worn("y", 60, 0)]), "rebuild the memory of y");
    let mut busy = worn("y", 60, 0);
    busy.reach = Reach::Defragging;
    assert_eq!(told(vec![worn("x", 50, 0), busy]), "");
}

#[test]
fn each_action_says_why_and_is_newer_than_what_the_node_has_seen() {
    let wants = desired(&[("x", &[100])], &[model("a", 80), model("b", 80)]);
    let fleet = observed(vec![holding(node("x", &[100]), vec![loaded("a", &[0])])]);
    let actions = decide(&wants, &fleet, &Demand::none().with("b", 3, Moment(0)), Moment(60 * S));
    let shown: Vec<(u64, String, &str)> =
        actions.iter().map(|action| (action.generation, action.to_string(), action.reason.as_str())).collect();
    let why = "makes room for `b` (0.1 GiB on a device): 3 requests wait for it; itself unused for 60 s";
    assert_eq!(shown, [(8, "unload a from x:0".to_owned(), why)]);
}
