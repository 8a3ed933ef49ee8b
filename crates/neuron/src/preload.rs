//! Keeps what was declared in memory: loads it in order at start, and after a reload of the configuration changes only what differs.

use std::sync::Arc;

use cortex_core::{Harness, HarnessError, ModelId, ModelReport, ModelSpec, UnloadRequest};
use tokio::sync::watch;

use crate::config::NeuronConfig;
use crate::harness::CandleHarness;

/// How one preload ended.
pub type Preloaded = (ModelId, Result<ModelReport, HarnessError>);

/// What the configuration says of models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// What may be served.
    pub models: Vec<ModelSpec>,
    /// Which of it is loaded without being asked for, in this order.
    pub preload: Vec<ModelId>,
}

/// What has to happen for memory to be as declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// Out of memory, what comes back as something else included. First, since what is loaded next may need the room.
    pub unload: Vec<ModelId>,
    /// Into memory, in this order.
    pub load: Vec<ModelSpec>,
}

/// Whoever declares. Once it is dropped, the last declaration is still carried out.
pub(crate) struct Preloader {
    /// The newest declaration only: an older one that was not begun is nobody's wish any more.
    wish: watch::Sender<Declared>,
    ended: watch::Receiver<Option<Vec<Preloaded>>>,
}

/// The task's own state.
struct Worker {
    harness: Arc<CandleHarness>,
    wish: watch::Receiver<Declared>,
    /// Loaded or about to be, as declared at that time.
    begun: Vec<ModelSpec>,
    /// Those of `begun` that came into memory. A gateway may have unloaded some since, which is its decision and not undone here.
    loaded: Vec<ModelSpec>,
}

impl Declared {
    /// The models of `config`.
    pub fn of(config: &NeuronConfig) -> Self {
        Self { models: config.models.clone(), preload: config.preload.clone() }
    }

    fn wanted(&self) -> impl Iterator<Item = &ModelSpec> {
        self.preload.iter().filter_map(|id| self.models.iter().find(|model| model.model_id == *id))
    }
}

/// What leads from `begun`, of which `loaded` is in memory, to `declared`. A model that is still declared, but not to be preloaded
/// any more, stays: whoever needs its memory unloads it.
pub fn changes(begun: &[ModelSpec], loaded: &[ModelSpec], declared: &Declared) -> Changes {
    let gone = begun.iter().filter(|model| !declared.models.contains(model));
    let new = declared.wanted().filter(|model| !loaded.contains(model));
    Changes { unload: gone.map(|model| model.model_id.clone()).collect(), load: new.cloned().collect() }
}

impl Preloader {
    /// Begins with `declared`.
    pub(crate) fn start(harness: Arc<CandleHarness>, declared: Declared) -> Self {
        let (wish, wishes) = watch::channel(declared);
        let (told, ended) = watch::channel(None);
        let worker = Worker { harness, wish: wishes, begun: Vec::new(), loaded: Vec::new() };
        tokio::spawn(worker.run(told));
        Self { wish, ended }
    }

    /// From now on `declared` is what memory should hold.
    pub(crate) fn declare(&self, declared: Declared) {
        self.wish.send_replace(declared);
    }

    /// How the loads of each declaration ended, the newest last; `None` before the first has.
    pub(crate) fn ended(&self) -> watch::Receiver<Option<Vec<Preloaded>>> {
        self.ended.clone()
    }
}

impl Worker {
    async fn run(mut self, told: watch::Sender<Option<Vec<Preloaded>>>) {
        loop {
            let declared = self.wish.borrow_and_update().clone();
            if let Some(ended) = self.follow(&declared).await {
                told.send_replace(Some(ended));
                if self.wish.changed().await.is_err() {
                    return;
                }
            }
        }
    }

    /// One after the other, since the order is the operator's, and the first is wanted first. `None` when a newer declaration came
    /// in between: what was begun is then known to the next round.
    async fn follow(&mut self, declared: &Declared) -> Option<Vec<Preloaded>> {
        let changes = changes(&self.begun, &self.loaded, declared);
        for id in changes.unload {
            self.unload(&id).await;
        }
        let mut ended = Vec::with_capacity(changes.load.len());
        for spec in changes.load {
            if !self.begun.contains(&spec) {
                self.begun.push(spec.clone());
            }
            let (harness, id) = (self.harness.clone(), spec.model_id.clone());
            let result = tokio::select! {
                result = harness.load(spec.clone()) => result,
                () = newer(&mut self.wish) => return None,
            };
            match &result {
                Ok(_) => self.loaded.push(spec),
                // Tried again with the next declaration.
                Err(_) => self.begun.retain(|begun| *begun != spec),
            }
            ended.push((id, result));
        }
        Some(ended)
    }

    async fn unload(&mut self, id: &ModelId) {
        let request = UnloadRequest { model_id: id.clone(), generation: None };
        match self.harness.unload(request).await {
            Ok(()) | Err(HarnessError::ModelNotFound(_)) => {}
            Err(error) => tracing::warn!(model = %id, "cannot unload: {error}"),
        }
        self.begun.retain(|model| model.model_id != *id);
        self.loaded.retain(|model| model.model_id != *id);
    }
}

/// Waits for a newer declaration; for ever when nobody can make one any more.
async fn newer(wish: &mut watch::Receiver<Declared>) {
    if wish.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(text: &str) -> ModelSpec {
        let (id, context) = text.split_once(':').unwrap_or((text, "1"));
        ModelSpec { context: context.parse().ok(), ..ModelSpec::new(id) }
    }

    fn models(text: &str) -> Vec<ModelSpec> {
        text.split_whitespace().map(model).collect()
    }

    #[test]
    fn only_what_differs_is_changed() {
        let cases = [
            // begun, loaded, declared, preload -> unload, load
            ("", "", "a b", "b a", "", "b a"),
            ("a b", "a b", "a b", "a b", "", ""),
            ("a b", "a b", "a b", "b a", "", ""),
            ("a b", "a b", "a b c", "a b c", "", "c"),
            ("a b", "a b", "b", "b", "a", ""),
            // Declared, but not to be preloaded any more: whoever needs the room unloads it.
            ("a b", "a b", "a b", "b", "", ""),
            // The same model with another context comes back as that.
            ("a b", "a b", "a:2 b", "a b", "a", "a:2"),
            // A load that was begun is joined, or broken off.
            ("a b", "a", "a b", "a b", "", "b"),
            ("a b", "a", "a", "a", "b", ""),
            ("a b", "a b", "", "", "a b", ""),
        ];
        for (begun, loaded, declared, preload, unload, load) in cases {
            let declared = Declared { models: models(declared), preload: preload.split_whitespace().map(ModelId::from).collect() };
            let expected = Changes { unload: unload.split_whitespace().map(ModelId::from).collect(), load: models(load) };
            assert_eq!(changes(&models(begun), &models(loaded), &declared), expected, "{begun} -> {preload} of {declared:?}");
        }
    }
}
