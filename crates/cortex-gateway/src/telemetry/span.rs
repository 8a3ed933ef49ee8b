//! What a span says, in the names that OpenTelemetry's semantic conventions have for it, and in ours where they have none.

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::context::Context;
use crate::clock;
use crate::proxy::{Outcome, Settled};

pub(super) fn of(settled: &Settled<'_>, own: Context, parent: Option<SpanId>) -> SpanData {
    let flags = if own.sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
    // The clock of the collector is the time of day. It is read once, so that no jump of it changes how long the request took.
    let end_time = clock::time_of_day();
    let operation = operation(settled.endpoint);
    SpanData {
        span_context: SpanContext::new(own.trace, own.span, flags, false, TraceState::NONE),
        parent_span_id: parent.unwrap_or(SpanId::INVALID),
        parent_span_is_remote: parent.is_some(),
        span_kind: SpanKind::Server,
        name: if settled.model.is_empty() { operation.into() } else { format!("{operation} {}", settled.model).into() },
        start_time: end_time.checked_sub(settled.total).unwrap_or(end_time),
        end_time,
        attributes: attributes(settled, operation),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: match settled.outcome {
            Outcome::Failed | Outcome::Cut => Status::error(settled.outcome.as_str()),
            Outcome::Ok | Outcome::Refused | Outcome::ClientGone => Status::Unset,
        },
        instrumentation_scope: InstrumentationScope::builder("cortex").with_version(env!("CARGO_PKG_VERSION")).build(),
    }
}

fn attributes(settled: &Settled<'_>, operation: &'static str) -> Vec<KeyValue> {
    let mut all = vec![
        KeyValue::new("gen_ai.operation.name", operation),
        KeyValue::new("gen_ai.provider.name", "cortex"),
        KeyValue::new("http.request.method", "POST"),
        KeyValue::new("http.route", settled.endpoint),
        KeyValue::new("cortex.request_id", settled.request_id.to_owned()),
        KeyValue::new("cortex.outcome", settled.outcome.as_str()),
        KeyValue::new("cortex.retries", i64::from(settled.retries)),
        KeyValue::new("cortex.cold_start", settled.cold_start),
    ];
    let mut say = |key: &'static str, value: &str| {
        if !value.is_empty() {
            all.push(KeyValue::new(key, value.to_owned()));
        }
    };
    say("gen_ai.request.model", settled.model);
    say("cortex.node", settled.node);
    say("cortex.key", settled.key.unwrap_or_default());
    if settled.outcome != Outcome::Ok {
        say("error.type", settled.outcome.as_str());
    }
    if settled.status != 0 {
        all.push(KeyValue::new("http.response.status_code", i64::from(settled.status)));
    }
    if let Some(ttft) = settled.ttft {
        all.push(KeyValue::new("cortex.ttft_ms", ttft.as_secs_f64() * 1e3));
    }
    if let Some(usage) = settled.usage {
        all.push(KeyValue::new("gen_ai.usage.input_tokens", i64::from(usage.prompt_tokens)));
        all.push(KeyValue::new("gen_ai.usage.cache_read.input_tokens", i64::from(usage.cached_tokens)));
        all.push(KeyValue::new("gen_ai.usage.output_tokens", i64::from(usage.completion_tokens)));
    }
    all
}

/// What is done, in the words of the conventions where they have one.
fn operation(endpoint: &str) -> &'static str {
    match endpoint {
        "/v1/completions" => "text_completion",
        "/v1/embeddings" => "embeddings",
        "/v1/rerank" => "rerank",
        "/v1/messages/count_tokens" => "count_tokens",
        _ => "chat",
    }
}
