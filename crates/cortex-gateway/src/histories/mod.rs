//! Random histories: the whole core of a gateway, or of two, (routing, retries, lines, reconciler, translation) and mock nodes in one
//! thread, on a clock that jumps. A seed tells the fleet, the requests, when clients leave, and what breaks when; the same seed tells the same again.
//!
//! What must hold, whatever the seed:
//! - every request ends in exactly one way, within the time that its deadline allows, and a stream never looks finished when it is not;
//! - what is open falls to nothing, in the gateway and on the nodes;
//! - no node is told to load a model that has no room there, or that it is loading already;
//! - where nobody asks for anything, models neither come nor go, also where two gateways each want their own;
//! - once nothing is broken any more, every model can be had again.
//!
//! `CORTEX_SEED=N cargo test -p cortex-gateway histories -- --nocapture` tells one history; `CORTEX_HISTORIES=N` tells the first N.

mod chance;
mod client;
mod node;
mod plan;
mod tell;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use tell::{History, tell};

/// As many as a test run has time for; `CORTEX_HISTORIES` sets another number.
const HISTORIES: u64 = if cfg!(debug_assertions) { 40 } else { 10_000 };

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}")))
}

/// Every seed below `count`, or the first that goes wrong.
fn tell_all(count: u64) -> Result<BTreeMap<String, u64>, History> {
    let next = AtomicU64::new(0);
    let worker = || {
        let mut ends: BTreeMap<String, u64> = BTreeMap::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= count {
                return Ok(ends);
            }
            let history = tell(seed);
            if !history.wrong.is_empty() {
                next.store(count, Ordering::Relaxed);
                return Err(history);
            }
            history.ends.iter().for_each(|(end, times)| *ends.entry(end.clone()).or_default() += times);
        }
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let mut all = BTreeMap::new();
        for worker in workers {
            for (end, times) in worker.join().expect("a history does not panic")? {
                *all.entry(end).or_default() += times;
            }
        }
        Ok(all)
    })
}

#[test]
fn whatever_happens_every_request_ends_once_and_nothing_is_left_open() {
    if let Some(seed) = number("CORTEX_SEED") {
        let history = tell(seed);
        println!("{}", history.told.join("\n"));
        assert!(history.wrong.is_empty(), "seed {seed}:\n{}", history.wrong.join("\n"));
        return;
    }
    let count = number("CORTEX_HISTORIES").unwrap_or(HISTORIES);
    let started = Instant::now();
    let ends = tell_all(count).unwrap_or_else(|History { seed, told, wrong, .. }| {
        panic!("{}\n\nseed {seed} (tell it again with CORTEX_SEED={seed}):\n{}", told.join("\n"), wrong.join("\n"))
    });
    println!("{count} histories in {:.1?}; {ends:?}", started.elapsed());
    // A test that brings nothing about shows nothing.
    for end in ["ok", "left", "event:stream_cut", "503:cannot_load"] {
        assert!(ends.contains_key(end), "no request ended with {end}: {ends:?}");
    }
}

#[test]
fn a_seed_tells_the_same_history_again() {
    for seed in 0..8 {
        let (first, second) = (tell(seed).told, tell(seed).told);
        let differs = first.iter().zip(&second).find(|(first, second)| first != second);
        assert!(first == second, "seed {seed}: {differs:?}");
    }
}
