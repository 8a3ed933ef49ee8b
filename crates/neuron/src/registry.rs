//! Every model this node knows and where each stands. Pure bookkeeping: it decides what a load or an unload has to do, and the
//! harness does it.

mod entry;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cortex_core::{HarnessError, ModelHealth, ModelId, ModelReport, ModelSpec};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::backend::{Described, Served};
use entry::{Entry, State, Wish, refuse_other};

/// Models known only because somebody asked for them; beyond this many, the oldest that is not in use is forgotten.
const UNCONFIGURED_MAX: usize = 64;

/// A model that broke so often within [`LOSS_WINDOW`] would only break again: it does not come back by itself.
const LOSSES_MAX: usize = 4;
const LOSS_WINDOW: Duration = Duration::from_mins(10);

/// How a load ended, once it did.
pub(crate) type Outcome = watch::Receiver<Option<Result<ModelReport, HarnessError>>>;

/// The models of this node, those of the configuration first.
#[derive(Default)]
pub(crate) struct Registry {
    entries: Vec<Entry>,
    draining: bool,
}

/// What a load has to do next.
pub(crate) enum LoadStep {
    /// Nothing.
    Loaded(ModelReport),
    /// Wait for the load that is under way.
    Join(Outcome),
    /// The load that is under way was told to stop: wait until it has, then ask again.
    AfterLoad(Outcome),
    /// Wait for the unload that is under way, then ask again.
    AfterUnload(watch::Receiver<()>),
    /// Load it, and wait for the outcome as everybody else.
    Start(LoadJob, Outcome),
}

/// A load that somebody must now carry out and [`Registry::settle`].
pub(crate) struct LoadJob {
    pub(crate) spec: ModelSpec,
    pub(crate) outcome: watch::Sender<Option<Result<ModelReport, HarnessError>>>,
    pub(crate) cancel: CancellationToken,
}

/// What becomes of a model that broke, once it is unloaded.
pub(crate) enum Revival {
    /// Load it again.
    Load(LoadJob),
    /// Leave it, for this reason.
    GiveUp(String),
}

/// What an unload has to do next.
pub(crate) enum UnloadStep {
    /// Nothing.
    Gone,
    /// A load was told to stop: wait until it has, then ask again.
    AfterLoad(Outcome),
    /// Wait for the unload that is under way.
    Join(watch::Receiver<()>),
    /// Unload this, then call [`Registry::unloaded`] and drop the sender.
    Start(Arc<dyn Served>, watch::Sender<()>),
}

impl Registry {
    /// The models of the configuration, each as `describe` knows it before it is loaded.
    pub(crate) fn new(configured: &[ModelSpec], describe: impl Fn(&ModelSpec) -> Option<Described>) -> Self {
        let entry = |spec: &ModelSpec| Entry { described: describe(spec), ..Entry::new(spec.model_id.clone(), Some(spec.clone())) };
        Self { entries: configured.iter().map(entry).collect(), draining: false }
    }

    /// Takes the models of a reloaded configuration, each with what is known of it before it is loaded. What is in memory stays
    /// there: whoever reloads unloads what must not.
    pub(crate) fn configure(&mut self, models: Vec<(ModelSpec, Option<Described>)>) {
        for entry in &mut self.entries {
            entry.withdrawn |= entry.configured.take().is_some();
        }
        for (spec, described) in models {
            let entry = self.entry_or_new(&spec.model_id);
            entry.described = described.or_else(|| entry.described.take());
            entry.configured = Some(spec);
            entry.withdrawn = false;
        }
        self.entries.retain(|entry| !(entry.withdrawn && entry.is_forgettable()));
    }

    pub(crate) fn reports(&self) -> Vec<ModelReport> {
        self.entries.iter().map(Entry::report).collect()
    }

    pub(crate) fn health(&self) -> Vec<ModelHealth> {
        self.entries.iter().filter_map(Entry::health).collect()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining
    }

    /// From now on nothing is loaded and nothing new is generated.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
    }

    pub(crate) fn ids(&self) -> Vec<ModelId> {
        self.entries.iter().map(|entry| entry.id.clone()).collect()
    }

    /// What is in memory, as it was asked for.
    pub(crate) fn loaded(&self) -> Vec<ModelSpec> {
        self.entries.iter().filter_map(Entry::loaded).cloned().collect()
    }

    /// The model, if it serves right now.
    pub(crate) fn serving(&self, id: &ModelId) -> Result<Arc<dyn Served>, HarnessError> {
        match self.entry(id).map(|entry| &entry.state) {
            None => Err(HarnessError::ModelNotFound(id.clone())),
            Some(_) if self.draining => Err(HarnessError::ShuttingDown),
            Some(State::Loaded { model, .. }) => Ok(model.clone()),
            Some(State::Unloading { .. }) => Err(HarnessError::ShuttingDown),
            Some(_) => Err(HarnessError::ModelNotLoaded(id.clone())),
        }
    }

    pub(crate) fn begin_load(&mut self, asked: &ModelSpec) -> Result<LoadStep, HarnessError> {
        if self.draining {
            return Err(HarnessError::ShuttingDown);
        }
        self.refuse_stale(&asked.model_id, asked.generation, Wish::Load)?;
        self.forget_oldest(&asked.model_id);
        let entry = self.entry_or_new(&asked.model_id);
        entry.note(asked.generation, Wish::Load);
        match &entry.state {
            State::Loaded { spec, .. } => refuse_other(asked, spec).map(|()| LoadStep::Loaded(entry.report())),
            State::Loading { spec, outcome, cancel, .. } if !cancel.is_cancelled() => {
                refuse_other(asked, spec).map(|()| LoadStep::Join(outcome.clone()))
            }
            State::Loading { outcome, .. } => Ok(LoadStep::AfterLoad(outcome.clone())),
            State::Unloading { gone } => Ok(LoadStep::AfterUnload(gone.clone())),
            State::Available | State::Failed { .. } => {
                let (job, outcome) = entry.start(asked);
                Ok(LoadStep::Start(job, outcome))
            }
        }
    }

    /// Notes how far a load is.
    pub(crate) fn progress(&mut self, id: &ModelId, now: u8) {
        if let Some(State::Loading { percent, .. }) = self.entry_mut(id).map(|entry| &mut entry.state) {
            *percent = now.min(100);
        }
    }

    /// Notes how a load ended and answers what its waiters are to be told. `watch` is dropped when the model is to leave memory.
    pub(crate) fn settle(
        &mut self,
        spec: ModelSpec,
        result: Result<Arc<dyn Served>, HarnessError>,
        load_s: f64,
        watch: DropGuard,
    ) -> Result<ModelReport, HarnessError> {
        let entry = self.entry_or_new(&spec.model_id.clone());
        match result {
            Ok(model) => {
                let info = model.info();
                entry.described = Some(Described { architecture: info.architecture.clone(), capabilities: info.capabilities.clone() });
                entry.info = Some(info);
                entry.load_s = Some(load_s);
                entry.state = State::Loaded { spec, model, _watch: watch };
                Ok(entry.report())
            }
            Err(HarnessError::ShuttingDown) => {
                entry.state = State::Available;
                Err(HarnessError::ShuttingDown)
            }
            Err(error) => {
                let reason = match &error {
                    HarnessError::CannotLoad { reason, .. } => reason.clone(),
                    other => other.to_string(),
                };
                entry.state = State::Failed { reason };
                Err(error)
            }
        }
    }

    /// `model` broke in a way that only a new load mends: it is loading again from now on, or has failed. `None` where it is
    /// not what this node has in memory, or is not to come back.
    pub(crate) fn begin_revival(&mut self, id: &ModelId, model: &Arc<dyn Served>, reason: &str, now: Instant) -> Option<Revival> {
        if self.draining {
            return None;
        }
        let entry = self.entry_mut(id)?;
        let State::Loaded { spec, model: loaded, .. } = &entry.state else { return None };
        if !Arc::ptr_eq(loaded, model) {
            return None;
        }
        let spec = spec.clone();
        entry.losses.retain(|loss| now.duration_since(*loss) < LOSS_WINDOW);
        entry.losses.push(now);
        if entry.losses.len() >= LOSSES_MAX {
            let minutes = LOSS_WINDOW.as_secs() / 60;
            let reason = format!("it broke {LOSSES_MAX} times within {minutes} minutes, the last time: {reason}");
            entry.state = State::Failed { reason: reason.clone() };
            return Some(Revival::GiveUp(reason));
        }
        // Coming back is no new wish: what the configuration dropped stays dropped.
        let withdrawn = entry.withdrawn;
        let (job, _) = entry.start(&spec);
        entry.withdrawn = withdrawn;
        Some(Revival::Load(job))
    }

    pub(crate) fn begin_unload(&mut self, id: &ModelId, generation: Option<u64>) -> Result<UnloadStep, HarnessError> {
        self.refuse_stale(id, generation, Wish::Unload)?;
        let entry = self.entry_mut(id).ok_or_else(|| HarnessError::ModelNotFound(id.clone()))?;
        entry.note(generation, Wish::Unload);
        match &entry.state {
            State::Available => Ok(UnloadStep::Gone),
            State::Failed { .. } => {
                entry.state = State::Available;
                Ok(UnloadStep::Gone)
            }
            State::Loading { outcome, cancel, .. } => {
                cancel.cancel();
                Ok(UnloadStep::AfterLoad(outcome.clone()))
            }
            State::Unloading { gone } => Ok(UnloadStep::Join(gone.clone())),
            State::Loaded { model, .. } => {
                let model = model.clone();
                let (sender, gone) = watch::channel(());
                entry.state = State::Unloading { gone };
                Ok(UnloadStep::Start(model, sender))
            }
        }
    }

    /// The memory is back.
    pub(crate) fn unloaded(&mut self, id: &ModelId) {
        if let Some(entry) = self.entry_mut(id) {
            entry.state = State::Available;
        }
        self.entries.retain(|entry| !(entry.withdrawn && entry.is_forgettable()));
    }

    /// An action with a number must be newer than every one before it on this model, or the last one once more: two gateways that decided upon
    /// the same picture cannot both have their way. Actions on several models may overtake each other on their way here.
    fn refuse_stale(&self, id: &ModelId, generation: Option<u64>, wish: Wish) -> Result<(), HarnessError> {
        let (Some(given), Some(entry)) = (generation, self.entry(id)) else { return Ok(()) };
        if given <= entry.generation && !entry.is_last(given, wish) {
            return Err(HarnessError::StaleGeneration { given, current: entry.generation });
        }
        Ok(())
    }

    fn entry(&self, id: &ModelId) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.id == *id)
    }

    fn entry_mut(&mut self, id: &ModelId) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.id == *id)
    }

    fn entry_or_new(&mut self, id: &ModelId) -> &mut Entry {
        let at = self.entries.iter().position(|entry| entry.id == *id).unwrap_or_else(|| {
            self.entries.push(Entry::new(id.clone(), None));
            self.entries.len() - 1
        });
        &mut self.entries[at]
    }

    fn forget_oldest(&mut self, newcomer: &ModelId) {
        if self.entry(newcomer).is_some() || self.entries.iter().filter(|entry| entry.configured.is_none()).count() < UNCONFIGURED_MAX {
            return;
        }
        if let Some(at) = self.entries.iter().position(Entry::is_forgettable) {
            self.entries.remove(at);
        }
    }
}
