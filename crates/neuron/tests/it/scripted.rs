//! An engine that does what the test says: loads wait for a gate, generations say who saw what.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use async_trait::async_trait;
use cortex_core::{
    Capability, Embeddings, EventStream, FinishReason, GenerateEvent, GenerateRequest, HarnessError, ModelHealth, ModelId, ModelSpec,
    Prompt, Relevances, Usage,
};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use neuron::backend::{Backend, Described, Served, ServedInfo};
use neuron_engine::image::EncodedImage;
use tokio::sync::{Semaphore, watch};

/// The engine of a test, and what was asked of it.
pub(crate) struct Scripted {
    /// A load takes one permit; closed gates make loads wait.
    pub(crate) load_gate: Semaphore,
    /// As `load_gate`, for unloads.
    pub(crate) unload_gate: Semaphore,
    /// As `load_gate`, for the last event of a generation.
    pub(crate) answer_gate: Arc<Semaphore>,
    pub(crate) loads: Mutex<Vec<(ModelSpec, PathBuf)>>,
    pub(crate) unloads: Arc<AtomicUsize>,
    /// What the next loads fail with; `panic` makes one panic.
    pub(crate) fail_with: Mutex<Vec<&'static str>>,
    pub(crate) sees: AtomicBool,
    /// How often all models broke.
    pub(crate) faults: watch::Sender<u64>,
    me: std::sync::Weak<Self>,
}

pub(crate) const OPEN: usize = 1000;

struct ScriptedModel {
    id: ModelId,
    engine: Arc<Scripted>,
    sees: bool,
}

impl Scripted {
    /// Every gate open.
    pub(crate) fn new() -> Arc<Self> {
        Self::with_gates(OPEN, OPEN, OPEN)
    }

    pub(crate) fn with_gates(load: usize, unload: usize, answer: usize) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            load_gate: Semaphore::new(load),
            unload_gate: Semaphore::new(unload),
            answer_gate: Arc::new(Semaphore::new(answer)),
            loads: Mutex::default(),
            unloads: Arc::default(),
            fail_with: Mutex::default(),
            sees: AtomicBool::new(false),
            faults: watch::Sender::new(0),
            me: me.clone(),
        })
    }

    pub(crate) fn load_count(&self) -> usize {
        self.loads.lock().expect("no holder panics").len()
    }
}

async fn pass(gate: &Semaphore) {
    gate.acquire().await.expect("what the test wrote").forget();
}

#[async_trait]
impl Backend for Scripted {
    fn device_names(&self) -> Vec<String> {
        vec!["cpu-0".to_owned()]
    }

    fn faults(&self) -> Vec<Option<String>> {
        vec![None]
    }

    fn failure(&self) -> BoxFuture<'static, String> {
        futures::future::pending().boxed()
    }

    fn describe(&self, folder: &Path) -> Option<Described> {
        folder.is_dir().then(|| Described { architecture: "scripted".to_owned(), capabilities: vec![Capability::Chat] })
    }

    async fn shutdown(&self) {}

    async fn load(&self, spec: &ModelSpec, folder: PathBuf) -> Result<Arc<dyn Served>, String> {
        self.loads.lock().expect("no holder panics").push((spec.clone(), folder));
        pass(&self.load_gate).await;
        let failure = self.fail_with.lock().expect("no holder panics").pop();
        match failure {
            Some("panic") => panic!("on order"),
            Some(reason) => return Err(reason.to_owned()),
            None => {}
        }
        let engine = self.me.upgrade().expect("what the test wrote");
        Ok(Arc::new(ScriptedModel { id: spec.model_id.clone(), engine, sees: self.sees.load(SeqCst) }))
    }
}

#[async_trait]
impl Served for ScriptedModel {
    fn info(&self) -> ServedInfo {
        let mut capabilities = vec![Capability::Chat];
        capabilities.extend(self.sees.then_some(Capability::Vision));
        ServedInfo {
            architecture: "scripted".to_owned(),
            parameters: 7,
            context: 64,
            capabilities,
            devices: vec!["cpu-0".to_owned()],
            memory_bytes: 1 << 20,
        }
    }

    fn health(&self) -> ModelHealth {
        ModelHealth {
            id: self.id.clone(),
            servable: true,
            running: 1,
            waiting: 2,
            kv_blocks_used: 3,
            kv_blocks_total: 4,
            generated_tokens_total: 5,
            prompt_tokens_total: 6,
            cached_tokens_total: 7,
        }
    }

    fn lost(&self) -> BoxFuture<'static, String> {
        let mut faults = self.engine.faults.subscribe();
        async move {
            match faults.changed().await {
                Ok(()) => "a step panicked".to_owned(),
                Err(_) => futures::future::pending().await,
            }
        }
        .boxed()
    }

    /// Says how many pictures came and how large each was, then waits for the gate.
    async fn generate(&self, _: GenerateRequest, images: Vec<EncodedImage>) -> Result<EventStream, HarnessError> {
        let text = format!("{:?}", images.iter().map(|image| image.bytes.len()).collect::<Vec<_>>());
        let usage = Usage { prompt_tokens: 1, completion_tokens: 1, ..Usage::default() };
        let gate = self.engine.answer_gate.clone();
        let first =
            [Ok(GenerateEvent::Started { prompt_tokens: 1, cached_tokens: 0 }), Ok(GenerateEvent::Text { text, logprobs: Vec::new() })];
        let last = futures::stream::once(async move {
            pass(&gate).await;
            Ok(GenerateEvent::Finish { reason: FinishReason::Stop, stop: None, usage })
        });
        Ok(futures::stream::iter(first).chain(last).boxed())
    }

    async fn rerank(&self, _: String, documents: Vec<String>) -> Result<Relevances, HarnessError> {
        Ok(Relevances { scores: vec![0.5; documents.len()], prompt_tokens: 1 })
    }

    async fn embed(&self, inputs: Vec<Prompt>) -> Result<Embeddings, HarnessError> {
        Ok(Embeddings { vectors: vec![vec![1.0]; inputs.len()], prompt_tokens: 1 })
    }

    async fn tokenize(&self, _: Prompt, images: Vec<EncodedImage>) -> Result<Vec<u32>, HarnessError> {
        Ok(images.iter().map(|image| image.bytes.len() as u32).collect())
    }

    fn detokenize(&self, ids: &[u32]) -> Result<String, HarnessError> {
        Ok(format!("{ids:?}"))
    }

    async fn unload(&self, _: Duration) {
        pass(&self.engine.unload_gate).await;
        self.engine.unloads.fetch_add(1, SeqCst);
    }
}
