//! The name of every metric, once.

/// A metric's name, its help text and its label names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// The name with its unit, as Prometheus wants it.
    pub name: &'static str,
    /// What it counts, for the `# HELP` line.
    pub help: &'static str,
    /// The labels, in the order in which values are given.
    pub labels: &'static [&'static str],
}

macro_rules! metrics {
    ($all:ident: $($name:ident = $text:literal, [$($label:literal),*], $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $name: Metric = Metric { name: $text, help: $help, labels: &[$($label),*] };
        )*
        /// All of them.
        pub const $all: &[Metric] = &[$($name),*];
    };
}

/// What the gateway tells at `metrics_listen`.
pub mod gateway {
    use super::Metric;

    metrics! { ALL:
        REQUESTS_TOTAL = "cortex_requests_total", ["model", "node", "endpoint", "outcome"],
            "Requests settled, by outcome: ok, refused, failed, cut, client_gone.";
        TOKENS_TOTAL = "cortex_tokens_total", ["model", "node", "direction"],
            "Tokens metered by the node, by direction: prompt, cached, completion. Cached tokens are also prompt tokens.";
        TTFT_SECONDS = "cortex_ttft_seconds", ["model", "node"],
            "Seconds from a request's arrival to the first byte of its answer.";
        REQUEST_DURATION_SECONDS = "cortex_request_duration_seconds", ["model", "node"],
            "Seconds from a request's arrival to the last byte of its answer.";
        TOKENS_PER_SECOND = "cortex_tokens_per_second", ["model", "node"],
            "Completion tokens per second of a streamed answer, from its first byte to its last.";
        REQUESTS_IN_FLIGHT = "cortex_requests_in_flight", ["model", "node"],
            "Requests open on a node.";
        RETRIES_TOTAL = "cortex_retries_total", ["model", "node", "reason"],
            "Attempts given up before anything was shown to the client, by the node that failed and the reason.";
        RETRIES_REFUSED_TOTAL = "cortex_retries_refused_total", [],
            "Repetitions that the retry budget did not allow.";
        KEY_REQUESTS_TOTAL = "cortex_key_requests_total", ["key", "outcome"],
            "Requests by the name of the key, by outcome: ok, refused, failed, cut, client_gone.";
        KEY_TOKENS_TOTAL = "cortex_key_tokens_total", ["key", "direction"],
            "Tokens by the name of the key, by direction: prompt, cached, completion.";
        CONFIG_RELOADS_TOTAL = "cortex_config_reloads_total", ["outcome"],
            "Reloads of the configuration, by outcome: ok, failed.";
        AUTH_FAILURES_TOTAL = "cortex_auth_failures_total", ["reason"],
            "Requests refused for their key: missing, unknown, forbidden, limited.";
        FALLBACKS_TOTAL = "cortex_fallbacks_total", ["model", "fallback"],
            "Requests that another model answered because the one asked for could not.";
        QUEUE_LENGTH = "cortex_queue_length", ["model"],
            "Requests waiting for a place on a model whose replicas are all full.";
        LOAD_WAITERS = "cortex_load_waiters", ["model"],
            "Requests waiting for a model to be loaded.";
        NODE_UP = "cortex_node_up", ["node"],
            "1 while the node takes requests, 0 while it is ejected, draining or unknown.";
        NODE_RESTARTS_TOTAL = "cortex_node_restarts_total", ["node"],
            "Times the node came back with another boot id.";
        MODEL_LOADS_TOTAL = "cortex_model_loads_total", ["model", "node", "outcome"],
            "Loads that this gateway ordered, by outcome: ok, failed.";
        MODEL_LOAD_SECONDS = "cortex_model_load_seconds", ["model", "node"],
            "Seconds that successful loads took.";
        MODEL_UNLOADS_TOTAL = "cortex_model_unloads_total", ["model", "node", "outcome"],
            "Unloads that this gateway ordered, by outcome: ok, failed.";
        SPANS_TOTAL = "cortex_spans_total", ["outcome"],
            "Spans of settled requests, by outcome: exported, failed, dropped.";
        LOG_LINES_DROPPED_TOTAL = "cortex_log_lines_dropped_total", [],
            "Log lines left out because their reader took no more.";
        NODE_CYCLES = "cortex_node_cycles", ["node"],
            "Loads and unloads that this gateway ordered on the node since its memory was new.";
    }
}

/// What a node tells at `GET /metrics`.
pub mod neuron {
    use super::Metric;

    metrics! { ALL:
        UPTIME_SECONDS = "neuron_uptime_seconds", [],
            "Seconds since the daemon started.";
        READY = "neuron_ready", [],
            "1 while the node takes requests, 0 while it drains.";
        SEQUENCES_RUNNING = "neuron_sequences_running", ["model"],
            "Sequences in the current batch.";
        SEQUENCES_WAITING = "neuron_sequences_waiting", ["model"],
            "Sequences waiting for a place in the batch.";
        KV_BLOCKS_USED = "neuron_kv_blocks_used", ["model"],
            "KV-cache blocks held by sequences.";
        KV_BLOCKS_TOTAL = "neuron_kv_blocks_total", ["model"],
            "KV-cache blocks in all.";
        GENERATED_TOKENS_TOTAL = "neuron_generated_tokens_total", ["model"],
            "Tokens generated since the model was loaded.";
        PROMPT_TOKENS_TOTAL = "neuron_prompt_tokens_total", ["model"],
            "Prompt tokens computed or found in the prefix cache since the model was loaded.";
        CACHED_TOKENS_TOTAL = "neuron_cached_tokens_total", ["model"],
            "Prompt tokens found in the prefix cache since the model was loaded.";
        MODEL_LOADED = "neuron_model_loaded", ["model"],
            "1 while the model is in memory, 0 otherwise.";
        MODEL_MEMORY_BYTES = "neuron_model_memory_bytes", ["model"],
            "Bytes of weights and KV cache on the devices.";
        MODEL_LOAD_SECONDS = "neuron_model_load_seconds", ["model"],
            "Seconds that the last load took.";
        DEVICE_MEMORY_USED_BYTES = "neuron_device_memory_used_bytes", ["device"],
            "Bytes in use on the device, by anyone.";
        DEVICE_MEMORY_FREE_BYTES = "neuron_device_memory_free_bytes", ["device"],
            "Bytes free on the device.";
        DEVICE_UTILIZATION_PERCENT = "neuron_device_utilization_percent", ["device"],
            "Busy share of the device in percent.";
        DEVICE_TEMPERATURE_CELSIUS = "neuron_device_temperature_celsius", ["device"],
            "Temperature of the device.";
        LOG_LINES_DROPPED_TOTAL = "neuron_log_lines_dropped_total", [],
            "Log lines left out because their reader took no more.";
        DEVICE_POISONED = "neuron_device_poisoned", ["device"],
            "1 after an error that makes the device refuse work until the daemon restarts.";
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_name_is_unique_and_carries_its_program() {
        for (prefix, all) in [("cortex_", gateway::ALL), ("neuron_", neuron::ALL)] {
            let names: BTreeSet<_> = all.iter().map(|metric| metric.name).collect();
            assert_eq!(names.len(), all.len());
            for metric in all {
                assert!(metric.name.starts_with(prefix), "{}", metric.name);
                assert!(metric.help.ends_with('.'), "{}", metric.name);
            }
        }
    }
}
