//! One span for each request, for a collector of OpenTelemetry, where the configuration names one. A span says what the access log says:
//! both are written at the same place, from the same facts.

mod context;
mod export;
mod span;

use std::sync::Arc;

use cortex_core::config::{OtlpEndpoint, TelemetrySection};
use cortex_net::{TlsError, Trust};
use http::HeaderMap;
use opentelemetry::trace::SpanId;
use opentelemetry_sdk::trace::SpanData;
use tokio::sync::mpsc;

use crate::metrics::Metrics;
use crate::proxy::Settled;

use context::{Context, TRACEPARENT, TRACESTATE};
pub(crate) use export::Exporter;

/// Spans cannot be sent where the configuration wants them.
#[derive(Debug, thiserror::Error)]
#[error("telemetry.otlp_endpoint `{endpoint}` cannot be used: {why}")]
pub struct TelemetryError {
    endpoint: String,
    why: String,
}

/// Where requests hand in their spans.
#[derive(Clone, Debug)]
pub(crate) struct Telemetry {
    spans: mpsc::Sender<Box<SpanData>>,
    metrics: Arc<Metrics>,
}

/// One request's span while it is open.
#[derive(Debug)]
pub(crate) struct Trace {
    telemetry: Telemetry,
    parent: Option<SpanId>,
    own: Context,
}

impl Telemetry {
    /// Both ends; `None` where the configuration names no collector.
    pub(crate) fn new(
        section: &TelemetrySection,
        trust: Option<Trust>,
        metrics: &Arc<Metrics>,
    ) -> Result<Option<(Self, Exporter)>, TelemetryError> {
        let Some(endpoint) = section.otlp_endpoint.as_ref().map(OtlpEndpoint::traces_url) else { return Ok(None) };
        let (spans, waiting) = mpsc::channel(export::SPANS_WAITING_MAX);
        let exporter = Exporter::new(endpoint, trust.unwrap_or_default(), waiting, Arc::clone(metrics))?;
        Ok(Some((Self { spans, metrics: Arc::clone(metrics) }, exporter)))
    }

    /// Whose certificate an `https` collector must show; absent: a public authority's.
    pub(crate) fn trust(section: &TelemetrySection) -> Result<Option<Trust>, TlsError> {
        section.ca.as_deref().map(Trust::of_file).transpose()
    }

    /// Opens the span of a request with these headers, within the one that they name.
    pub(crate) fn open(&self, headers: &HeaderMap) -> Box<Trace> {
        let parent = Context::of(headers);
        let own = parent.map_or_else(Context::root, Context::child);
        Box::new(Trace { telemetry: self.clone(), parent: parent.map(|parent| parent.span), own })
    }
}

impl Trace {
    /// Has what the node does become part of the span. A state without a parent means nothing.
    pub(crate) fn pass_on(&self, headers: &mut HeaderMap) {
        headers.insert(TRACEPARENT, self.own.header());
        if self.parent.is_none() {
            headers.remove(TRACESTATE);
        }
    }

    /// The request's end. A span that finds no room in the queue, or that nobody wants to see, is left out.
    pub(crate) fn close(&self, settled: &Settled<'_>) {
        if !self.own.sampled {
            return;
        }
        let span = Box::new(span::of(settled, self.own, self.parent));
        if self.telemetry.spans.try_send(span).is_err() {
            self.telemetry.metrics.spans.with_label_values(&["dropped"]).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::proxy::Outcome;

    #[test]
    fn a_full_queue_keeps_nobody_waiting_and_what_nobody_wants_to_see_is_not_kept() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let (spans, mut waiting) = mpsc::channel(2);
        let telemetry = Telemetry { spans, metrics: Arc::clone(&metrics) };
        let settled = Settled {
            request_id: "r",
            key: None,
            endpoint: "/v1/embeddings",
            model: "",
            node: "",
            status: 404,
            outcome: Outcome::Refused,
            ttft: None,
            total: Duration::from_millis(3),
            retries: 0,
            cold_start: false,
            usage: None,
        };
        let unsampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        let headers: HeaderMap = [(TRACEPARENT, unsampled.parse().unwrap())].into_iter().collect();
        telemetry.open(&headers).close(&settled);
        (0..5).for_each(|_| telemetry.open(&HeaderMap::new()).close(&settled));
        assert_eq!(metrics.spans.with_label_values(&["dropped"]).get(), 3);
        let span = waiting.try_recv().unwrap();
        assert_eq!(span.name, "embeddings");
        assert_eq!(span.end_time.duration_since(span.start_time).unwrap(), settled.total);
        assert!(waiting.try_recv().is_ok() && waiting.try_recv().is_err());
    }
}
