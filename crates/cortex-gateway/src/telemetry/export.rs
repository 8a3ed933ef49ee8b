//! Spans on their way to the collector: a task of its own gathers them and sends them together. Nobody waits for it.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use cortex_net::{DialWaits, Dialer, Trust};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::TelemetryError;
use crate::metrics::Metrics;

/// Spans that wait; more of them are left out and counted.
pub(super) const SPANS_WAITING_MAX: usize = 4_096;
/// Spans that are sent together.
const BATCH_LEN_MAX: usize = 512;
/// Time for a batch to fill.
const GATHER: Duration = Duration::from_secs(1);
/// Time for the collector to take a batch.
const SEND_MAX: Duration = Duration::from_secs(10);
/// What is left at the end is worth so much waiting.
const LAST_SEND_MAX: Duration = Duration::from_secs(2);
/// Longest answer of the collector that is read.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// The task's end of the queue.
#[derive(Debug)]
pub(crate) struct Exporter {
    spans: mpsc::Receiver<Box<SpanData>>,
    to: SpanExporter,
    endpoint: String,
    metrics: Arc<Metrics>,
    /// The last batch was not taken.
    failing: bool,
}

impl Exporter {
    pub(super) fn new(
        endpoint: String,
        trust: Trust,
        spans: mpsc::Receiver<Box<SpanData>>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, TelemetryError> {
        let dialer = Dialer::new(Arc::new(ArcSwap::from_pointee(trust)), DialWaits::connecting(SEND_MAX / 2));
        let pool = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(dialer);
        let builder = SpanExporter::builder().with_http().with_http_client(Collector(pool));
        let builder = builder.with_endpoint(&endpoint).with_protocol(Protocol::HttpBinary).with_timeout(SEND_MAX);
        let mut to = builder.build().map_err(|error| TelemetryError { endpoint: endpoint.clone(), why: error.to_string() })?;
        let version = opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        to.set_resource(&Resource::builder().with_service_name("cortex").with_attribute(version).build());
        Ok(Self { spans, to, endpoint, metrics, failing: false })
    }

    /// Sends until `kill`, and then what is left.
    pub(crate) async fn run(mut self, kill: CancellationToken) {
        loop {
            let mut batch = Vec::new();
            let stops = kill.run_until_cancelled(self.gather(&mut batch)).await.is_none();
            while stops && let Ok(span) = self.spans.try_recv() {
                batch.push(*span);
            }
            if !batch.is_empty() {
                self.send(batch, &kill).await;
            }
            if stops {
                return;
            }
        }
    }

    /// The next spans.
    async fn gather(&mut self, batch: &mut Vec<SpanData>) {
        let Some(first) = self.spans.recv().await else { return std::future::pending().await };
        batch.push(*first);
        let fill = async {
            while batch.len() < BATCH_LEN_MAX
                && let Some(span) = self.spans.recv().await
            {
                batch.push(*span);
            }
        };
        let _ = tokio::time::timeout(GATHER, fill).await;
    }

    async fn send(&mut self, batch: Vec<SpanData>, kill: &CancellationToken) {
        let count = batch.len() as u64;
        let last = async {
            kill.cancelled().await;
            tokio::time::sleep(LAST_SEND_MAX).await;
        };
        let taken = tokio::select! {
            outcome = self.to.export(batch) => outcome.map_err(|error| error.to_string()),
            () = tokio::time::sleep(SEND_MAX) => Err(format!("no answer within {SEND_MAX:?}")),
            () = last => Err(format!("no answer within {LAST_SEND_MAX:?} while the gateway stops")),
        };
        let outcome = if taken.is_ok() { "exported" } else { "failed" };
        self.metrics.spans.with_label_values(&[outcome]).inc_by(count);
        match taken {
            Ok(()) if self.failing => tracing::info!(endpoint = self.endpoint, "the collector takes spans again"),
            Err(why) if !self.failing => {
                tracing::warn!(endpoint = self.endpoint, why, "the collector takes no spans; they are lost meanwhile");
            }
            _ => {}
        }
        self.failing = outcome == "failed";
    }
}

/// The way to the collector, over the connections that everything here uses.
#[derive(Clone, Debug)]
struct Collector(Client<Dialer, Full<Bytes>>);

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: http::Request<Bytes>) -> Result<http::Response<Bytes>, HttpError> {
        let (head, body) = self.0.request(request.map(Full::new)).await?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
        Ok(http::Response::from_parts(head, body))
    }
}
