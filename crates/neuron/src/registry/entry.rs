//! One model of this node: what it was asked to be, and where it stands.

use std::sync::Arc;
use std::time::Instant;

use cortex_core::{HarnessError, ModelHealth, ModelId, ModelReport, ModelSpec, ModelStatus};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{LoadJob, Outcome};
use crate::backend::{Described, Served, ServedInfo};

pub(super) struct Entry {
    pub(super) id: ModelId,
    /// The configuration's entry, if it has one.
    pub(super) configured: Option<ModelSpec>,
    /// It had one, and the newest does not: forgotten once it is out of memory.
    pub(super) withdrawn: bool,
    /// The number of the last action that had one, and what it wanted.
    pub(super) generation: u64,
    pub(super) wish: Option<Wish>,
    pub(super) described: Option<Described>,
    /// Of the last load.
    pub(super) info: Option<ServedInfo>,
    pub(super) load_s: Option<f64>,
    /// When it broke.
    pub(super) losses: Vec<Instant>,
    pub(super) state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Load,
    Unload,
}

pub(super) enum State {
    Available,
    Loading {
        spec: ModelSpec,
        percent: u8,
        outcome: Outcome,
        cancel: CancellationToken,
    },
    Loaded {
        spec: ModelSpec,
        model: Arc<dyn Served>,
        /// Dropped with this state: ends whoever stands by to bring the model back.
        _watch: DropGuard,
    },
    /// The receiver's sender is dropped when the memory is back.
    Unloading {
        gone: watch::Receiver<()>,
    },
    Failed {
        reason: String,
    },
}

impl Entry {
    pub(super) fn new(id: ModelId, configured: Option<ModelSpec>) -> Self {
        let state = State::Available;
        Self {
            id,
            configured,
            withdrawn: false,
            generation: 0,
            wish: None,
            described: None,
            info: None,
            load_s: None,
            losses: Vec::new(),
            state,
        }
    }

    /// Notes an action that is accepted.
    pub(super) fn note(&mut self, generation: Option<u64>, wish: Wish) {
        if let Some(generation) = generation {
            (self.generation, self.wish) = (generation, Some(wish));
        }
    }

    /// Whether this is the last action that was noted.
    pub(super) fn is_last(&self, generation: u64, wish: Wish) -> bool {
        (self.generation, self.wish) == (generation, Some(wish))
    }

    pub(super) fn start(&mut self, asked: &ModelSpec) -> (LoadJob, Outcome) {
        let spec = resolve(asked, self.configured.as_ref());
        let (sender, outcome) = watch::channel(None);
        let cancel = CancellationToken::new();
        self.withdrawn = false;
        self.state = State::Loading { spec: spec.clone(), percent: 0, outcome: outcome.clone(), cancel: cancel.clone() };
        (LoadJob { spec, outcome: sender, cancel }, outcome)
    }

    pub(super) fn is_forgettable(&self) -> bool {
        self.configured.is_none() && matches!(self.state, State::Available | State::Failed { .. })
    }

    pub(super) fn loaded(&self) -> Option<&ModelSpec> {
        match &self.state {
            State::Loaded { spec, .. } => Some(spec),
            _ => None,
        }
    }

    pub(super) fn health(&self) -> Option<ModelHealth> {
        match &self.state {
            State::Loaded { model, .. } => Some(ModelHealth { id: self.id.clone(), ..model.health() }),
            _ => None,
        }
    }

    pub(super) fn report(&self) -> ModelReport {
        let info = self.info.as_ref();
        let loaded = info.filter(|_| matches!(self.state, State::Loaded { .. } | State::Unloading { .. }));
        ModelReport {
            id: self.id.clone(),
            status: self.status(),
            capabilities: self.described.as_ref().map(|model| model.capabilities.clone()).unwrap_or_default(),
            architecture: self.described.as_ref().map(|model| model.architecture.clone()),
            parameters: info.map(|info| info.parameters),
            context: loaded.map(|info| info.context),
            devices: loaded.map(|info| info.devices.clone()).unwrap_or_default(),
            memory_used_bytes: loaded.map_or(0, |info| info.memory_bytes),
            generation: self.generation,
            load_s: self.load_s,
        }
    }

    fn status(&self) -> ModelStatus {
        match &self.state {
            State::Available => ModelStatus::Available,
            State::Loading { percent, .. } => ModelStatus::Loading { percent: *percent },
            State::Loaded { .. } => ModelStatus::Loaded,
            State::Unloading { .. } => ModelStatus::Unloading,
            State::Failed { reason } => ModelStatus::Failed { reason: reason.clone() },
        }
    }
}

/// What was asked, over the configuration's entry.
fn resolve(asked: &ModelSpec, configured: Option<&ModelSpec>) -> ModelSpec {
    let Some(own) = configured else { return asked.clone() };
    // A revision belongs to a source: naming another source leaves the entry's revision behind.
    let own_revision = own.revision.as_ref().filter(|_| asked.source.is_none() || asked.source == own.source);
    ModelSpec {
        model_id: asked.model_id.clone(),
        source: asked.source.clone().or_else(|| own.source.clone()),
        revision: asked.revision.clone().or_else(|| own_revision.cloned()),
        dtype: asked.dtype.clone().or_else(|| own.dtype.clone()),
        quant: asked.quant.clone().or_else(|| own.quant.clone()),
        tensor_parallel: asked.tensor_parallel.or(own.tensor_parallel),
        devices: asked.devices.clone().or_else(|| own.devices.clone()),
        context: asked.context.or(own.context),
        parallel: asked.parallel.or(own.parallel),
        generation: asked.generation,
    }
}

/// Whoever asks for other options than those in memory must unload first: silently serving something else would be worse.
pub(super) fn refuse_other(asked: &ModelSpec, has: &ModelSpec) -> Result<(), HarnessError> {
    fn differs<T: PartialEq>(asked: Option<&T>, has: Option<&T>) -> bool {
        asked.is_some() && asked != has
    }
    let differing = [
        ("source", differs(asked.source.as_ref(), has.source.as_ref())),
        ("revision", differs(asked.revision.as_ref(), has.revision.as_ref())),
        ("dtype", differs(asked.dtype.as_ref(), has.dtype.as_ref())),
        ("quant", differs(asked.quant.as_ref(), has.quant.as_ref())),
        ("tensor_parallel", differs(asked.tensor_parallel.as_ref(), has.tensor_parallel.as_ref())),
        ("devices", differs(asked.devices.as_ref(), has.devices.as_ref())),
        ("context", differs(asked.context.as_ref(), has.context.as_ref())),
        ("parallel", differs(asked.parallel.as_ref(), has.parallel.as_ref())),
    ];
    match differing.iter().find(|(_, differs)| *differs) {
        Some((field, _)) => {
            let problem = format!("`{}` is loaded with another `{field}`: unload it first", asked.model_id);
            Err(HarnessError::invalid(*field, problem))
        }
        None => Ok(()),
    }
}
