//! Requests for models that no node serves: who waits, for what, since when, and what they are told. What is done about it is decided
//! elsewhere; there is one load however many wait.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use cortex_core::ModelId;
use cortex_core::config::{Limits, Timeouts};
use cortex_core::openai::ApiError;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::fleet::{FleetCell, Standing};
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

/// The demand for models, and the reasons of loads that failed a moment ago.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    fleet: Arc<FleetCell>,
    waiting_max: usize,
    failure_kept: Duration,
    entries: Mutex<BTreeMap<ModelId, Entry>>,
    wake: Notify,
}

#[derive(Debug)]
enum Entry {
    Wanted { since: Instant, waiting: usize, promise: Arc<Promise> },
    Failed { until: Instant, error: LoadError },
}

type Outcome = Result<(), LoadError>;

/// What all who wait for a model are told, in the order in which they came.
#[derive(Debug, Default)]
struct Promise {
    outcome: OnceLock<Outcome>,
    told: Notify,
}

impl Promise {
    fn keep(&self, outcome: Outcome) {
        let _ = self.outcome.set(outcome);
        self.told.notify_waiters();
    }

    async fn kept(&self) -> Outcome {
        loop {
            let mut told = std::pin::pin!(self.told.notified());
            told.as_mut().enable(); // what is told from here on is heard
            if let Some(outcome) = self.outcome.get() {
                return outcome.clone();
            }
            told.await;
        }
    }
}

/// One model that is waited for.
#[derive(Clone, Debug)]
pub(crate) struct Want {
    pub(crate) model: ModelId,
    pub(crate) waiting: usize,
    pub(crate) since: Instant,
}

impl Lifecycle {
    pub(crate) fn new(fleet: Arc<FleetCell>, limits: &Limits, timeouts: &Timeouts) -> Self {
        Self {
            fleet,
            waiting_max: limits.load_waiters_max.get(),
            failure_kept: timeouts.load_failure_ms.duration(),
            entries: Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// Waits until a node has `model` in memory. Dropping the future gives up the waiting, not a load that has begun.
    pub(crate) async fn ensure_loaded(self: &Arc<Self>, model: &ModelId) -> Result<(), LoadError> {
        let Some((promise, _place)) = self.join(model)? else { return Ok(()) };
        self.wake();
        promise.kept().await
    }

    /// How many requests wait for each model that is not in memory.
    pub(crate) fn waiters(&self) -> Vec<(String, usize)> {
        self.wanted().into_iter().map(|want| (want.model.to_string(), want.waiting)).collect()
    }

    /// Every model that is waited for.
    pub(crate) fn wanted(&self) -> Vec<Want> {
        let entries = self.entries();
        let wanted = entries.iter().filter_map(|(model, entry)| match entry {
            Entry::Wanted { since, waiting, .. } => Some(Want { model: model.clone(), waiting: *waiting, since: *since }),
            Entry::Failed { .. } => None,
        });
        wanted.collect()
    }

    /// Lets those go on whose model a ready node has by now.
    pub(crate) fn settle(&self) {
        let fleet = self.fleet.load();
        self.entries().retain(|model, entry| match entry {
            Entry::Wanted { promise, .. } if routing::is_loaded(&fleet, model.as_str()) => {
                promise.keep(Ok(()));
                false
            }
            // Everybody has left, but the load goes on.
            Entry::Wanted { waiting: 0, .. } => fleet.replicas(model.as_str()).any(|(_, replica)| replica.standing == Standing::Loading),
            Entry::Wanted { .. } => true,
            Entry::Failed { until, .. } => Instant::now() < *until,
        });
    }

    /// Tells all who wait for `model` that it is not to be had now, and whoever asks within the next moments.
    pub(crate) fn give_up(&self, model: &ModelId, reason: &str) {
        let error = self.failed(model, reason);
        let failed = Entry::Failed { until: Instant::now() + self.failure_kept, error: error.clone() };
        if let Some(Entry::Wanted { promise, .. }) = self.entries().insert(model.clone(), failed) {
            promise.keep(Err(error));
        }
    }

    /// Has the reconciler look.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Resolves after [`Lifecycle::wake`].
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// What to wait for; `None` when the model is in memory by now.
    fn join(self: &Arc<Self>, model: &ModelId) -> Result<Option<(Arc<Promise>, Waiter)>, LoadError> {
        let mut entries = self.entries();
        if let Some(Entry::Failed { until, error }) = entries.get(model) {
            if Instant::now() < *until {
                return Err(error.clone());
            }
            entries.remove(model);
        }
        // A load that ended a moment ago changed the fleet before those who waited for it were told.
        if routing::is_loaded(&self.fleet.load(), model.as_str()) {
            return Ok(None);
        }
        let fresh = || Entry::Wanted { since: Instant::now(), waiting: 0, promise: Arc::default() };
        let Entry::Wanted { waiting, promise, .. } = entries.entry(model.clone()).or_insert_with(fresh) else { return Ok(None) };
        if *waiting >= self.waiting_max {
            let retry_after_s = self.eta_s(model);
            return Err(LoadError::TooManyWaiters { model: model.clone(), waiting_max: self.waiting_max, retry_after_s });
        }
        *waiting += 1;
        Ok(Some((Arc::clone(promise), Waiter { lifecycle: Arc::clone(self), model: model.clone() })))
    }

    fn leave(&self, model: &ModelId) {
        let mut entries = self.entries();
        if let Some(Entry::Wanted { waiting, .. }) = entries.get_mut(model) {
            *waiting = waiting.saturating_sub(1);
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

    fn entries(&self) -> MutexGuard<'_, BTreeMap<ModelId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request that waits; it counts until this is dropped.
struct Waiter {
    lifecycle: Arc<Lifecycle>,
    model: ModelId,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.lifecycle.leave(&self.model);
    }
}
