//! The generator against a node whose every delay is known.

// A helper that unwraps fails its test, as it should.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use cortex_bench::run::run;
use cortex_bench::target::Target;
use cortex_bench::workload::Workload;
use neuron_api::mock::{Faults, MockConfig, MockModel, MockNeuron, MockServer};

const PREFILL: Duration = Duration::from_millis(60);
const TOKEN: Duration = Duration::from_millis(15);

async fn node() -> MockServer {
    let model = MockModel { prefill_time: PREFILL, token_time: TOKEN, ..MockModel::loaded("m") }.saying(["a ", "b ", "c ", "d "]);
    MockNeuron::new(MockConfig::new([model])).serve().await.unwrap()
}

fn workload(arrival: &str) -> Workload {
    Workload::parse(&format!("seed = 1\nrequests = 24\nmax_tokens = 8\nprompt_words = {{ min = 2, max = 4 }}\n[arrival]\n{arrival}\n"))
        .unwrap()
}

fn target(node: &MockServer) -> Target {
    Target::new(&node.endpoint(), None, Duration::from_secs(60)).unwrap()
}

#[tokio::test]
async fn the_figures_are_at_least_the_nodes_own_delays() {
    let node = node().await;
    let report = run(&workload("at_once = 4"), "m", &target(&node)).await;
    assert_eq!((report.answered, report.errors.len()), (24, 0), "{report}");
    assert!(report.ttft_ms.p50 >= (PREFILL + TOKEN).as_secs_f64() * 1e3, "{report}");
    assert!(report.itl_ms.mean >= TOKEN.as_secs_f64() * 1e3 * 0.9, "{report}");
    assert!(report.whole_ms.p50 >= (PREFILL + 4 * TOKEN).as_secs_f64() * 1e3, "{report}");
    let tokens = report.tokens_per_second * report.seconds;
    assert!((tokens - 96.0).abs() < 1e-6, "as the node counts them: {tokens}");
    assert_eq!(node.mock.counts().active_peak, 4);
}

#[tokio::test]
async fn with_a_rate_the_wait_for_a_place_counts() {
    let node = node().await;
    let report = run(&workload("at_once = 1\nper_second = 1000.0"), "m", &target(&node)).await;
    assert_eq!(report.answered, 24, "{report}");
    assert_eq!(node.mock.counts().active_peak, 1);
    // All come at about the same time and are served one after another.
    let one = (PREFILL + 4 * TOKEN).as_secs_f64() * 1e3;
    assert!(report.ttft_ms.max >= 20.0 * one, "{report}");
}

#[tokio::test]
async fn what_fails_is_counted_by_its_reason() {
    let node = node().await;
    node.mock.set_faults("m", Faults { overloaded: Some(1), ..Faults::default() });
    let report = run(&workload("at_once = 4"), "m", &target(&node)).await;
    assert_eq!((report.answered, report.errors.values().sum::<usize>()), (0, 24));
    assert!(report.errors.keys().all(|error| error.starts_with("429")), "{report}");
    node.mock.set_faults("m", Faults { die_after: Some(2), ..Faults::default() });
    let report = run(&workload("at_once = 4"), "m", &target(&node)).await;
    assert!(report.errors.keys().all(|error| error.starts_with("error event")), "{report}");
}
