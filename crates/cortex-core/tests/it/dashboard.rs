//! The example dashboard shows only metrics that exist, and every one of the gateway's.

use std::collections::BTreeSet;
use std::path::Path;

use cortex_core::metrics::{gateway, neuron};
use serde_json::Value;

/// Every metric named in an expression, without the suffix of a histogram's parts.
fn named(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let metrics = words.filter(|word| word.starts_with("cortex_") || word.starts_with("neuron_"));
    metrics.map(|word| ["_bucket", "_sum", "_count"].iter().find_map(|suffix| word.strip_suffix(suffix)).unwrap_or(word))
}

#[test]
fn the_dashboard_names_metrics_that_exist_and_all_of_the_gateway() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/grafana/cortex.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let targets = dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let expressions: Vec<&str> = targets.map(|target| target["expr"].as_str().unwrap()).collect();
    let shown: BTreeSet<&str> = expressions.iter().flat_map(|expression| named(expression)).collect();
    let exist: BTreeSet<&str> = gateway::ALL.iter().chain(neuron::ALL).map(|metric| metric.name).collect();
    assert_eq!(shown.difference(&exist).collect::<Vec<_>>(), Vec::<&&str>::new(), "shown, but not there");
    let own: BTreeSet<&str> = gateway::ALL.iter().map(|metric| metric.name).collect();
    assert_eq!(own.difference(&shown).collect::<Vec<_>>(), Vec::<&&str>::new(), "there, but not shown");
    assert_eq!(named("histogram_quantile(0.5, sum by (le) (rate(cortex_x_seconds_bucket[5m])))").collect::<Vec<_>>(), ["cortex_x_seconds"]);
}
