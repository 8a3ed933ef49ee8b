//! One request's story: when it came, who answered, what it used, how it ended. All request metrics and the access log come from here,
//! when the observer is dropped, so that no way out of the code is missed, a client that leaves included.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cortex_core::{ModelId, NodeId, Usage};
use http::HeaderMap;

use crate::clock;
use crate::keys::OpenRequest;
use crate::metrics::Metrics;
use crate::telemetry::Trace;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The answer was passed on to its end.
    Ok,
    /// The request was at fault, or there was no room for it (4xx).
    Refused,
    /// Gateway or node could not answer (5xx), or the node ended a stream with an error.
    Failed,
    /// The node went away in the middle of the answer.
    Cut,
    /// The client went away first.
    ClientGone,
}

impl Outcome {
    /// What an answer with this status is.
    pub(crate) fn of_status(status: u16) -> Self {
        match status {
            ..400 => Self::Ok,
            400..500 => Self::Refused,
            _ => Self::Failed,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Cut => "cut",
            Self::ClientGone => "client_gone",
        }
    }
}

/// Settles when dropped.
#[derive(Debug)]
pub(crate) struct Observer {
    metrics: Arc<Metrics>,
    endpoint: &'static str,
    request_id: String,
    arrived: Instant,
    /// Known to the fleet: labels must not grow with what clients invent.
    model: Option<ModelId>,
    node: Option<NodeId>,
    first_byte: Option<Instant>,
    usage: Option<Usage>,
    /// Whose request it is; counted as open until the observer is dropped.
    asker: Option<OpenRequest>,
    /// Its span; absent where nobody collects any.
    trace: Option<Box<Trace>>,
    retries: u32,
    /// It waited for a load.
    cold: bool,
    status: u16,
    streamed: bool,
    outcome: Outcome,
}

impl Observer {
    pub(crate) fn new(metrics: Arc<Metrics>, endpoint: &'static str, request_id: String) -> Self {
        Self {
            metrics,
            endpoint,
            request_id,
            arrived: clock::now(),
            model: None,
            node: None,
            first_byte: None,
            usage: None,
            asker: None,
            trace: None,
            retries: 0,
            cold: false,
            status: 0,
            streamed: false,
            outcome: Outcome::ClientGone,
        }
    }

    pub(crate) fn asker(&mut self, asker: OpenRequest) {
        self.asker = Some(asker);
    }

    pub(crate) fn traced(&mut self, trace: Option<Box<Trace>>) {
        self.trace = trace;
    }

    /// Has the node know whose work it does.
    pub(crate) fn pass_trace_on(&self, headers: &mut HeaderMap) {
        self.trace.iter().for_each(|trace| trace.pass_on(headers));
    }

    pub(crate) fn model(&mut self, model: &ModelId) {
        self.model = Some(model.clone());
    }

    /// Another attempt, at `node`.
    pub(crate) fn tries(&mut self, node: &NodeId) {
        self.node = Some(node.clone());
    }

    /// The attempt failed and the client has seen nothing of it.
    pub(crate) fn gave_up(&mut self, reason: &str) {
        self.retries += 1;
        let labels = [self.model_label(), self.node_label(), reason];
        self.metrics.retries.with_label_values(&labels).inc();
        tracing::info!(request_id = %self.request_id, model = labels[0], node = labels[1], reason, "attempt failed");
    }

    /// The model is not in memory: the request waits for a load.
    pub(crate) fn waits_for_load(&mut self) {
        self.cold = true;
    }

    /// The head of the answer.
    pub(crate) fn answers(&mut self, status: u16, streamed: bool) {
        (self.status, self.streamed) = (status, streamed);
    }

    pub(crate) fn data(&mut self) {
        self.first_byte.get_or_insert_with(clock::now);
    }

    pub(crate) fn usage(&mut self, usage: Usage) {
        self.usage = Some(usage);
    }

    pub(crate) fn has_usage(&self) -> bool {
        self.usage.is_some()
    }

    /// The end, of which there is one: later calls change nothing.
    pub(crate) fn ends(&mut self, outcome: Outcome) {
        if self.outcome == Outcome::ClientGone {
            self.outcome = outcome;
        }
    }

    /// The gateway's own answer, without a node's.
    pub(crate) fn refuses(&mut self, status: u16) {
        self.status = status;
        self.ends(Outcome::of_status(status));
    }

    fn model_label(&self) -> &str {
        self.model.as_ref().map_or("", ModelId::as_str)
    }

    fn node_label(&self) -> &str {
        self.node.as_ref().map_or("", NodeId::as_str)
    }

    fn settle(&self) {
        let now = clock::now();
        let (model, node) = (self.model_label(), self.node_label());
        self.metrics.requests.with_label_values(&[model, node, self.endpoint, self.outcome.as_str()]).inc();
        if let Some(usage) = &self.usage {
            self.count_tokens(usage, now);
        }
        let asker = self.asker.as_ref().map(OpenRequest::principal);
        if let Some(asker) = asker {
            self.metrics.key_requests.with_label_values(&[&*asker.name, self.outcome.as_str()]).inc();
            self.usage.iter().for_each(|usage| asker.charge(usage));
        }
        if self.outcome == Outcome::Ok {
            self.metrics.duration.with_label_values(&[model, node]).observe((now - self.arrived).as_secs_f64());
        }
        if let Some(first_byte) = self.first_byte {
            self.metrics.ttft.with_label_values(&[model, node]).observe((first_byte - self.arrived).as_secs_f64());
        }
        let settled = Settled {
            request_id: &self.request_id,
            key: asker.map(|asker| &*asker.name),
            endpoint: self.endpoint,
            model,
            node,
            status: self.status,
            outcome: self.outcome,
            ttft: self.first_byte.map(|first| first - self.arrived),
            total: now - self.arrived,
            retries: self.retries,
            cold_start: self.cold,
            usage: self.usage,
        };
        settled.log();
        self.trace.iter().for_each(|trace| trace.close(&settled));
    }

    fn count_tokens(&self, usage: &Usage, now: Instant) {
        let (model, node) = (self.model_label(), self.node_label());
        let directions = [("prompt", usage.prompt_tokens), ("cached", usage.cached_tokens), ("completion", usage.completion_tokens)];
        for (direction, count) in directions {
            self.metrics.tokens.with_label_values(&[model, node, direction]).inc_by(u64::from(count));
            if let Some(asker) = &self.asker {
                self.metrics.key_tokens.with_label_values(&[&*asker.principal().name, direction]).inc_by(u64::from(count));
            }
        }
        let streaming = self.first_byte.filter(|_| self.streamed).map(|first| (now - first).as_secs_f64());
        if let Some(seconds) = streaming.filter(|seconds| *seconds > 0.0) {
            self.metrics.tokens_per_second.with_label_values(&[model, node]).observe(f64::from(usage.completion_tokens) / seconds);
        }
    }
}

/// How a request went: what the access log says, and its span.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settled<'a> {
    pub(crate) request_id: &'a str,
    pub(crate) key: Option<&'a str>,
    pub(crate) endpoint: &'static str,
    /// Empty: none that is known.
    pub(crate) model: &'a str,
    /// Empty: it came to none.
    pub(crate) node: &'a str,
    pub(crate) status: u16,
    pub(crate) outcome: Outcome,
    pub(crate) ttft: Option<Duration>,
    pub(crate) total: Duration,
    pub(crate) retries: u32,
    pub(crate) cold_start: bool,
    pub(crate) usage: Option<Usage>,
}

impl Settled<'_> {
    fn log(&self) {
        tracing::info!(
            request_id = %self.request_id,
            key = self.key,
            endpoint = self.endpoint,
            model = self.model,
            node = self.node,
            status = self.status,
            outcome = self.outcome.as_str(),
            ttft_ms = self.ttft.map(|ttft| ttft.as_secs_f64() * 1e3),
            total_ms = self.total.as_secs_f64() * 1e3,
            retries = self.retries,
            cold_start = self.cold_start,
            cached_tokens = self.usage.map(|usage| usage.cached_tokens),
            prompt_tokens = self.usage.map(|usage| usage.prompt_tokens),
            completion_tokens = self.usage.map(|usage| usage.completion_tokens),
            "request"
        );
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.settle();
    }
}
