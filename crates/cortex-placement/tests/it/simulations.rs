//! Fleets in virtual time: no rule is broken and every fleet comes to rest.

use cortex_placement::{Simulation, simulate};

#[test]
fn fleets_with_faults_break_no_rule_and_come_to_rest() {
    for seed in 0..20 {
        let outcome = simulate(&Simulation { nodes: 30, seed, faults: true }).unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
        assert!(outcome.losses > 0 && outcome.loads_failed > 0 && outcome.unloads > 0 && outcome.served > 100, "seed {seed}: {outcome:?}");
    }
}

#[test]
fn the_same_seed_is_the_same_history() {
    let told = || {
        let outcome = simulate(&Simulation { nodes: 20, seed: 7, faults: true }).unwrap();
        (outcome.loads, outcome.unloads, outcome.losses, outcome.served, outcome.waited_ms_max, outcome.rest_steps)
    };
    assert_eq!(told(), told());
}
