//! Getting a model into memory: one load per model at a time, however many requests wait for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cortex_core::config::{Limits, Timeouts};
use cortex_core::openai::ApiError;
use cortex_core::{ModelId, NodeId};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::fleet::FleetCell;
use crate::nodes::Nodes;
use crate::routing;

/// Why a model is not in memory now. Every waiter gets the same.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("`{model}` is being loaded and {waiting_max} requests wait for it already")]
    TooManyWaiters { model: ModelId, waiting_max: usize, retry_after_s: u64 },
    #[error("cannot load `{model}`: {reason}")]
    Failed { model: ModelId, reason: Arc<str>, retry_after_s: u64 },
}

impl From<LoadError> for ApiError {
    fn from(error: LoadError) -> Self {
        let message = error.to_string();
        match error {
            LoadError::TooManyWaiters { retry_after_s, .. } => {
                Self::new(429, "rate_limit_error", Some("model_loading"), message).with_retry_after(retry_after_s)
            }
            LoadError::Failed { retry_after_s, .. } => {
                Self::new(503, "server_error", Some("cannot_load"), message).with_retry_after(retry_after_s)
            }
        }
    }
}

/// Where loads run: they outlive the requests that want them, but not the gateway.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks {
    pub(crate) tracker: TaskTracker,
    pub(crate) kill: CancellationToken,
}

/// The loads under way, and the reasons of those that failed a moment ago.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    fleet: Arc<FleetCell>,
    nodes: Arc<Nodes>,
    waiting_max: usize,
    failure_kept: Duration,
    flights: Mutex<HashMap<ModelId, Entry>>,
    tasks: Tasks,
}

#[derive(Debug)]
enum Entry {
    Loading(Flight),
    Failed { until: Instant, error: LoadError },
}

/// One load. It belongs to a task of its own, so that it goes on when those who wait for it leave.
#[derive(Clone, Debug)]
struct Flight {
    outcome: watch::Receiver<Option<Outcome>>,
    places: Arc<Semaphore>,
}

type Outcome = Result<(), LoadError>;

impl Lifecycle {
    pub(crate) fn new(fleet: Arc<FleetCell>, nodes: Arc<Nodes>, limits: &Limits, timeouts: &Timeouts, tasks: Tasks) -> Self {
        Self {
            fleet,
            nodes,
            waiting_max: limits.load_waiters_max.get().min(Semaphore::MAX_PERMITS),
            failure_kept: timeouts.load_failure_ms.duration(),
            flights: Mutex::default(),
            tasks,
        }
    }

    /// Waits until a node outside `tried` has `model` in memory. Dropping the future gives up the waiting, not the load.
    pub(crate) async fn ensure_loaded(self: &Arc<Self>, model: &ModelId, tried: &[NodeId]) -> Result<(), LoadError> {
        let Some(mut flight) = self.join(model, tried)? else { return Ok(()) };
        let Ok(_place) = flight.places.try_acquire() else {
            let retry_after_s = self.eta_s(model);
            return Err(LoadError::TooManyWaiters { model: model.clone(), waiting_max: self.waiting_max, retry_after_s });
        };
        match flight.outcome.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            _ => Err(self.failed(model, "the load was abandoned; see the gateway's log")),
        }
    }

    /// How many requests wait for each model that is being loaded.
    pub(crate) fn waiters(&self) -> Vec<(String, usize)> {
        let waiting = |flight: &Flight| self.waiting_max - flight.places.available_permits();
        let flights = self.flights();
        let loading = flights.iter().filter_map(|(model, entry)| match entry {
            Entry::Loading(flight) => Some((model.to_string(), waiting(flight))),
            Entry::Failed { .. } => None,
        });
        loading.collect()
    }

    /// The load to wait for, begun if need be; `None` when the model is in memory by now.
    fn join(self: &Arc<Self>, model: &ModelId, tried: &[NodeId]) -> Result<Option<Flight>, LoadError> {
        let mut flights = self.flights();
        match flights.get(model) {
            // A sender that is gone belonged to a task that panicked.
            Some(Entry::Loading(flight)) if flight.outcome.has_changed().is_ok() => return Ok(Some(flight.clone())),
            Some(Entry::Failed { until, error }) if Instant::now() < *until => return Err(error.clone()),
            _ => {}
        }
        // A load that ended a moment ago changed the fleet before it left the table.
        if routing::is_loaded(&self.fleet.load(), model.as_str(), tried) {
            return Ok(None);
        }
        let (sender, outcome) = watch::channel(None);
        let flight = Flight { outcome, places: Arc::new(Semaphore::new(self.waiting_max)) };
        flights.insert(model.clone(), Entry::Loading(flight.clone()));
        let flying = Arc::clone(self).fly(model.clone(), tried.to_vec(), sender);
        self.tasks.tracker.spawn(self.tasks.kill.clone().run_until_cancelled_owned(flying));
        Ok(Some(flight))
    }

    async fn fly(self: Arc<Self>, model: ModelId, excluded: Vec<NodeId>, sender: watch::Sender<Option<Outcome>>) {
        let outcome = self.load_somewhere(&model, excluded).await;
        {
            let mut flights = self.flights();
            match &outcome {
                Ok(()) => flights.remove(&model),
                Err(error) => flights.insert(model, Entry::Failed { until: Instant::now() + self.failure_kept, error: error.clone() }),
            };
        }
        sender.send_replace(Some(outcome));
    }

    /// Tries one node after another until one has it.
    async fn load_somewhere(&self, model: &ModelId, mut excluded: Vec<NodeId>) -> Outcome {
        let mut reasons: Vec<String> = Vec::new();
        loop {
            let target = routing::load_target(&self.fleet.load(), model.as_str(), &excluded).map(|node| node.id.clone());
            let Some(node) = target else {
                let reason = if reasons.is_empty() { "no node that has it is ready".to_owned() } else { reasons.join("; ") };
                return Err(self.failed(model, &reason));
            };
            match self.nodes.load(&node, model).await {
                Ok(_) => return Ok(()),
                Err(error) => reasons.push(format!("{node}: {error}")),
            }
            excluded.push(node);
        }
    }

    fn failed(&self, model: &ModelId, reason: &str) -> LoadError {
        let retry_after_s = self.failure_kept.as_secs_f64().ceil() as u64;
        LoadError::Failed { model: model.clone(), reason: reason.into(), retry_after_s }
    }

    /// Seconds that the last load took, where a node knows; a guess otherwise.
    fn eta_s(&self, model: &ModelId) -> u64 {
        const GUESS_S: f64 = 5.0;
        let fleet = self.fleet.load();
        let known = fleet.replicas(model.as_str()).filter_map(|(node, _)| node.models.get(model)?.load_s);
        known.reduce(f64::max).unwrap_or(GUESS_S).ceil().max(1.0) as u64
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<ModelId, Entry>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
