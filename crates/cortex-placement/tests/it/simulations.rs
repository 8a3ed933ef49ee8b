//! Fleets in virtual time: no rule is broken and every fleet comes to rest.

use std::time::Duration;

use cortex_placement::{Simulation, simulate};

/// What is seen here does not depend on how long it takes.
fn no_clock() -> Duration {
    Duration::ZERO
}

#[test]
fn fleets_with_faults_break_no_rule_and_come_to_rest() {
    let few = (0..20).flat_map(|seed| [(30, seed), (100, seed)]);
    let mut loads_failed = 0;
    for (nodes, seed) in few.chain([(1000, 0)]) {
        let run = simulate(&Simulation { nodes, seed, faults: true }, no_clock)
            .unwrap_or_else(|broken| panic!("{nodes} nodes, seed {seed}: {broken}"));
        assert!(run.losses > 0 && run.unloads > 0 && run.served > 100, "{nodes} nodes, seed {seed}: {run:?}");
        loads_failed += run.loads_failed;
    }
    assert!(loads_failed > 100, "{loads_failed}");
}

#[test]
fn the_same_seed_is_the_same_history() {
    let told = || {
        let outcome = simulate(&Simulation { nodes: 20, seed: 7, faults: true }, no_clock).unwrap();
        (outcome.loads, outcome.unloads, outcome.losses, outcome.served, outcome.waited_ms_max, outcome.rest_steps)
    };
    assert_eq!(told(), told());
}
