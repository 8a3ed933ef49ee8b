//! `GET /metrics`: the figures of `/health` and `/models` in Prometheus' text format. They are gathered anew for each scrape, so
//! that there is one source of truth.

use cortex_core::metrics::{Metric, neuron as names};
use cortex_core::{Health, ModelReport};
use prometheus::{Encoder, Error, GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};

const NO_LABEL: [&str; 0] = [];

/// The text of a scrape.
pub fn render(health: &Health, models: &[ModelReport], log_lines_dropped: u64) -> Result<String, Error> {
    let registry = Registry::new();
    node(&registry, health)?;
    devices(&registry, health)?;
    reports(&registry, models)?;
    loaded(&registry, health)?;
    counter(&registry, &names::LOG_LINES_DROPPED_TOTAL)?.with_label_values(&NO_LABEL).inc_by(log_lines_dropped);
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    String::from_utf8(text).map_err(|error| Error::Msg(error.to_string()))
}

fn node(registry: &Registry, health: &Health) -> Result<(), Error> {
    gauge(registry, &names::UPTIME_SECONDS)?.with_label_values(&NO_LABEL).set(health.uptime_s);
    int_gauge(registry, &names::READY)?.with_label_values(&NO_LABEL).set(health.ready.into());
    Ok(())
}

fn devices(registry: &Registry, health: &Health) -> Result<(), Error> {
    let used = int_gauge(registry, &names::DEVICE_MEMORY_USED_BYTES)?;
    let free = int_gauge(registry, &names::DEVICE_MEMORY_FREE_BYTES)?;
    let busy = int_gauge(registry, &names::DEVICE_UTILIZATION_PERCENT)?;
    let warm = int_gauge(registry, &names::DEVICE_TEMPERATURE_CELSIUS)?;
    let poisoned = int_gauge(registry, &names::DEVICE_POISONED)?;
    for device in &health.devices {
        let label = [device.name.as_str()];
        used.with_label_values(&label).set(clamped(device.memory_used_bytes));
        free.with_label_values(&label).set(clamped(device.memory_free_bytes));
        if let Some(percent) = device.utilization_percent {
            busy.with_label_values(&label).set(percent.into());
        }
        if let Some(celsius) = device.temperature_c {
            warm.with_label_values(&label).set(celsius.into());
        }
        poisoned.with_label_values(&label).set(device.poisoned.is_some().into());
    }
    Ok(())
}

fn reports(registry: &Registry, models: &[ModelReport]) -> Result<(), Error> {
    let loaded = int_gauge(registry, &names::MODEL_LOADED)?;
    let memory = int_gauge(registry, &names::MODEL_MEMORY_BYTES)?;
    let seconds = gauge(registry, &names::MODEL_LOAD_SECONDS)?;
    for model in models {
        let label = [model.id.as_str()];
        loaded.with_label_values(&label).set(model.is_loaded().into());
        memory.with_label_values(&label).set(clamped(model.memory_used_bytes));
        if let Some(load_s) = model.load_s {
            seconds.with_label_values(&label).set(load_s);
        }
    }
    Ok(())
}

fn loaded(registry: &Registry, health: &Health) -> Result<(), Error> {
    let running = int_gauge(registry, &names::SEQUENCES_RUNNING)?;
    let waiting = int_gauge(registry, &names::SEQUENCES_WAITING)?;
    let blocks_used = int_gauge(registry, &names::KV_BLOCKS_USED)?;
    let blocks_total = int_gauge(registry, &names::KV_BLOCKS_TOTAL)?;
    let generated = counter(registry, &names::GENERATED_TOKENS_TOTAL)?;
    let prompt = counter(registry, &names::PROMPT_TOKENS_TOTAL)?;
    let cached = counter(registry, &names::CACHED_TOKENS_TOTAL)?;
    for model in &health.models {
        let label = [model.id.as_str()];
        running.with_label_values(&label).set(model.running.into());
        waiting.with_label_values(&label).set(model.waiting.into());
        blocks_used.with_label_values(&label).set(model.kv_blocks_used.into());
        blocks_total.with_label_values(&label).set(model.kv_blocks_total.into());
        generated.with_label_values(&label).inc_by(model.generated_tokens_total);
        prompt.with_label_values(&label).inc_by(model.prompt_tokens_total);
        cached.with_label_values(&label).inc_by(model.cached_tokens_total);
    }
    Ok(())
}

fn gauge(registry: &Registry, metric: &Metric) -> Result<GaugeVec, Error> {
    let vec = GaugeVec::new(Opts::new(metric.name, metric.help), metric.labels)?;
    registry.register(Box::new(vec.clone()))?;
    Ok(vec)
}

fn int_gauge(registry: &Registry, metric: &Metric) -> Result<IntGaugeVec, Error> {
    let vec = IntGaugeVec::new(Opts::new(metric.name, metric.help), metric.labels)?;
    registry.register(Box::new(vec.clone()))?;
    Ok(vec)
}

fn counter(registry: &Registry, metric: &Metric) -> Result<IntCounterVec, Error> {
    let vec = IntCounterVec::new(Opts::new(metric.name, metric.help), metric.labels)?;
    registry.register(Box::new(vec.clone()))?;
    Ok(vec)
}

fn clamped(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
