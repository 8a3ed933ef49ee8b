//! The gateway's figures, in a registry of its own, so that two gateways in one process do not share them.

use cortex_core::metrics::{Metric, gateway as names};
use prometheus::core::Collector;
use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::fleet::{Fleet, Reach};

const SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
const TOKENS_PER_SECOND: &[f64] = &[1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 150.0, 200.0, 300.0, 500.0, 1000.0];

/// Everything that is counted.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) requests: IntCounterVec,
    pub(crate) tokens: IntCounterVec,
    pub(crate) ttft: HistogramVec,
    pub(crate) duration: HistogramVec,
    pub(crate) tokens_per_second: HistogramVec,
    pub(crate) retries: IntCounterVec,
    pub(crate) retries_refused: IntCounter,
    pub(crate) fallbacks: IntCounterVec,
    pub(crate) auth_failures: IntCounterVec,
    pub(crate) config_reloads: IntCounterVec,
    pub(crate) key_requests: IntCounterVec,
    pub(crate) key_tokens: IntCounterVec,
    pub(crate) node_restarts: IntCounterVec,
    pub(crate) model_loads: IntCounterVec,
    pub(crate) model_load: HistogramVec,
    pub(crate) model_unloads: IntCounterVec,
    pub(crate) node_cycles: IntGaugeVec,
    pub(crate) spans: IntCounterVec,
    in_flight: IntGaugeVec,
    queue_length: IntGaugeVec,
    load_waiters: IntGaugeVec,
    node_up: IntGaugeVec,
}

impl Metrics {
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |metric: Metric| -> Result<IntCounterVec, prometheus::Error> {
            let counter = IntCounterVec::new(Opts::new(metric.name, metric.help), metric.labels)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let gauge = |metric: Metric| -> Result<IntGaugeVec, prometheus::Error> {
            let gauge = IntGaugeVec::new(Opts::new(metric.name, metric.help), metric.labels)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let histogram = |metric: Metric, buckets: &[f64]| -> Result<HistogramVec, prometheus::Error> {
            let histogram = HistogramVec::new(HistogramOpts::new(metric.name, metric.help).buckets(buckets.to_vec()), metric.labels)?;
            registry.register(Box::new(histogram.clone()))?;
            Ok(histogram)
        };
        Ok(Self {
            requests: counter(names::REQUESTS_TOTAL)?,
            tokens: counter(names::TOKENS_TOTAL)?,
            ttft: histogram(names::TTFT_SECONDS, SECONDS)?,
            duration: histogram(names::REQUEST_DURATION_SECONDS, SECONDS)?,
            tokens_per_second: histogram(names::TOKENS_PER_SECOND, TOKENS_PER_SECOND)?,
            retries: counter(names::RETRIES_TOTAL)?,
            retries_refused: counter(names::RETRIES_REFUSED_TOTAL)?.with_label_values(&[] as &[&str]),
            fallbacks: counter(names::FALLBACKS_TOTAL)?,
            config_reloads: counter(names::CONFIG_RELOADS_TOTAL)?,
            auth_failures: counter(names::AUTH_FAILURES_TOTAL)?,
            key_requests: counter(names::KEY_REQUESTS_TOTAL)?,
            key_tokens: counter(names::KEY_TOKENS_TOTAL)?,
            node_restarts: counter(names::NODE_RESTARTS_TOTAL)?,
            model_loads: counter(names::MODEL_LOADS_TOTAL)?,
            model_load: histogram(names::MODEL_LOAD_SECONDS, SECONDS)?,
            model_unloads: counter(names::MODEL_UNLOADS_TOTAL)?,
            node_cycles: gauge(names::NODE_CYCLES)?,
            spans: counter(names::SPANS_TOTAL)?,
            in_flight: gauge(names::REQUESTS_IN_FLIGHT)?,
            queue_length: gauge(names::QUEUE_LENGTH)?,
            load_waiters: gauge(names::LOAD_WAITERS)?,
            node_up: gauge(names::NODE_UP)?,
            registry,
        })
    }

    /// Prometheus text. Gauges are read from the fleet at this moment instead of being kept up to date by everyone.
    pub(crate) fn render(
        &self,
        fleet: &Fleet,
        waiters: &[(String, usize)],
        queues: &[(String, usize)],
    ) -> Result<String, prometheus::Error> {
        self.in_flight.reset();
        for node in fleet.nodes() {
            self.node_up.with_label_values(&[node.id.as_str()]).set(i64::from(node.reach == Reach::Ready));
        }
        for model in fleet.models() {
            for (node, replica) in fleet.replicas(model.as_str()) {
                self.in_flight.with_label_values(&[model.as_str(), node.id.as_str()]).set(gauge_value(replica.load.outstanding()));
            }
        }
        for (gauge, lengths) in [(&self.load_waiters, waiters), (&self.queue_length, queues)] {
            gauge.reset();
            for (model, count) in lengths {
                gauge.with_label_values(&[model.as_str()]).set(gauge_value(*count));
            }
        }
        let mut families = self.registry.gather();
        families.extend(log_lines_dropped()?.collect());
        TextEncoder::new().encode_to_string(&families)
    }
}

/// Counted by the process's logger, which knows nothing of registries.
fn log_lines_dropped() -> Result<IntCounter, prometheus::Error> {
    let Metric { name, help, .. } = names::LOG_LINES_DROPPED_TOTAL;
    let counter = IntCounter::new(name, help)?;
    counter.inc_by(cortex_log::lines_dropped());
    Ok(counter)
}

fn gauge_value(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
