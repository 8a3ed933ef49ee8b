//! The mock neuron: a second implementer of [`Harness`], with scripted answers, delays and faults, for tests of everything that
//! talks to a node. All waiting is on tokio's clock, so a paused one works.

mod generation;
mod lifecycle;
mod script;
mod server;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use cortex_core::{
    Capability, DeviceHealth, DeviceInfo, DeviceKind, Discovery, EmbedRequest, Embeddings, EventStream, GenerateRequest, Harness,
    HarnessError, Health, ModelHealth, ModelId, ModelReport, ModelSpec, ModelStatus, Prompt, Relevances, RerankRequest, UnloadRequest,
};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

pub use script::{Answer, Said};
pub use server::MockServer;

/// How many requests [`MockNeuron::requests`] remembers.
const REQUESTS_KEPT: usize = 256;

/// A whole mock node.
#[derive(Clone, Debug)]
pub struct MockConfig {
    /// Its hostname.
    pub hostname: String,
    /// What it can serve.
    pub models: Vec<MockModel>,
    /// Bytes of its one device; a load that does not fit beside the loaded models is refused.
    pub memory_total_bytes: u64,
    /// Generations at once, over all models; above it the answer is "overloaded".
    pub active_max: usize,
    /// What callers must present; empty: nothing.
    pub token: String,
}

impl MockConfig {
    /// A node with these models, 16 GiB and 256 places.
    pub fn new(models: impl IntoIterator<Item = MockModel>) -> Self {
        let models = models.into_iter().collect();
        Self { hostname: "mock".into(), models, memory_total_bytes: 16 << 30, active_max: 256, token: String::new() }
    }

    /// Under another name.
    pub fn named(mut self, hostname: &str) -> Self {
        self.hostname = hostname.into();
        self
    }
}

/// One scripted model.
#[derive(Clone, Debug)]
pub struct MockModel {
    /// Its id.
    pub id: ModelId,
    /// In memory from the start.
    pub loaded: bool,
    /// What it can be asked for.
    pub capabilities: Vec<Capability>,
    /// Longest sequence in tokens (characters, for the mock).
    pub context: usize,
    /// What it takes of the device.
    pub memory_bytes: u64,
    /// What it says.
    pub answer: Answer,
    /// How long a load takes.
    pub load_time: Duration,
    /// How long an unload takes once drained.
    pub unload_time: Duration,
    /// From admission to `Started`.
    pub prefill_time: Duration,
    /// Before each token.
    pub token_time: Duration,
    /// Tokens reported as found in the prefix cache, at most those of the prompt.
    pub cached_tokens: u32,
    /// What goes wrong.
    pub faults: Faults,
}

impl MockModel {
    /// A loaded chat model of 1 GiB that echoes the last message at once.
    pub fn loaded(id: &str) -> Self {
        Self {
            id: id.into(),
            loaded: true,
            capabilities: vec![Capability::Chat],
            context: 4096,
            memory_bytes: 1 << 30,
            answer: Answer::Echo,
            load_time: Duration::ZERO,
            unload_time: Duration::ZERO,
            prefill_time: Duration::ZERO,
            token_time: Duration::ZERO,
            cached_tokens: 0,
            faults: Faults::default(),
        }
    }

    /// The same, not loaded.
    pub fn available(id: &str) -> Self {
        Self { loaded: false, ..Self::loaded(id) }
    }

    /// Says these tokens, whatever it is asked.
    pub fn saying<T: Into<String>>(mut self, tokens: impl IntoIterator<Item = T>) -> Self {
        self.answer = Answer::Tokens(tokens.into_iter().map(Into::into).collect());
        self
    }

    /// Thinks, speaks and calls tools as told, whatever it is asked.
    pub fn acting(mut self, said: impl IntoIterator<Item = Said>) -> Self {
        self.answer = Answer::Said(said.into_iter().collect());
        self
    }
}

/// What goes wrong with a model. All can be changed while the node runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Each load fails with this reason.
    pub refuse_load: Option<String>,
    /// So many loads fail, after their load time; then they succeed.
    pub fail_loads: u32,
    /// Generations are admitted and then nothing comes.
    pub hang: bool,
    /// Generations are not even admitted; the head of the answer never comes.
    pub hang_admission: bool,
    /// A generation ends with an error after so many tokens.
    pub die_after: Option<usize>,
    /// All connections of the [`MockServer`] are cut after so many tokens.
    pub cut_after: Option<usize>,
    /// Generations are refused as overloaded, to be retried after so many seconds.
    pub overloaded: Option<u64>,
}

/// What the mock has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MockCounts {
    /// Loads begun.
    pub loads_started: usize,
    /// Loads that ended well.
    pub loads: usize,
    /// Loads that failed.
    pub loads_failed: usize,
    /// Unloads that ended.
    pub unloads: usize,
    /// Generations admitted.
    pub generations: usize,
    /// Generations refused.
    pub refused: usize,
    /// Generations running now.
    pub active: usize,
    /// Most generations that ran at once.
    pub active_peak: usize,
    /// Generations that reached their finish.
    pub finished: usize,
    /// Generations that ended by a fault.
    pub died: usize,
    /// Generations dropped before their end.
    pub cancelled: usize,
}

/// The mock node. A clone is another handle to the same one: the router takes one as its harness, the test keeps one to look inside.
#[derive(Clone, Debug)]
pub struct MockNeuron {
    node: Arc<Node>,
}

#[derive(Debug)]
struct Node {
    hostname: String,
    boot_id: String,
    memory_total_bytes: u64,
    active_max: usize,
    token: String,
    started: Instant,
    state: Mutex<State>,
    counts: watch::Sender<MockCounts>,
    /// A generation has ended; those who wait hear it in the order in which they came, which a watch does not promise.
    ended: Notify,
    /// Bumped to cut all connections.
    cuts: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    ready: bool,
    /// The newest generation number seen in any action.
    generation: u64,
    slots: BTreeMap<ModelId, Slot>,
    requests: VecDeque<GenerateRequest>,
}

/// A model and where it stands.
#[derive(Debug)]
struct Slot {
    model: MockModel,
    status: ModelStatus,
    /// The number of the last action that had one, and what it wanted.
    generation: u64,
    wanted: Option<lifecycle::Kind>,
    active: usize,
    transition: Option<lifecycle::Transition>,
    load_s: Option<f64>,
    prompt_tokens_total: u64,
    generated_tokens_total: u64,
}

impl MockNeuron {
    /// A node as `config` describes it.
    pub fn new(config: MockConfig) -> Self {
        let slot = |model: MockModel| {
            let status = if model.loaded { ModelStatus::Loaded } else { ModelStatus::Available };
            (model.id.clone(), Slot::new(model, status))
        };
        let slots = config.models.into_iter().map(slot).collect();
        let node = Node {
            hostname: config.hostname,
            boot_id: uuid::Uuid::new_v4().to_string(),
            memory_total_bytes: config.memory_total_bytes,
            active_max: config.active_max,
            token: config.token,
            started: Instant::now(),
            state: Mutex::new(State { ready: true, generation: 0, slots, requests: VecDeque::new() }),
            counts: watch::Sender::new(MockCounts::default()),
            ended: Notify::new(),
            cuts: watch::Sender::new(0),
        };
        Self { node: Arc::new(node) }
    }

    /// What was counted so far.
    pub fn counts(&self) -> MockCounts {
        *self.node.counts.borrow()
    }

    /// Waits until the counts are as wanted.
    pub async fn wait_for(&self, wanted: impl Fn(&MockCounts) -> bool) -> MockCounts {
        let mut counts = self.node.counts.subscribe();
        *counts.wait_for(|counts| wanted(counts)).await.expect("the sender lives in self")
    }

    /// The latest generation requests, oldest first.
    pub fn requests(&self) -> Vec<GenerateRequest> {
        self.state().requests.iter().cloned().collect()
    }

    /// Changes what goes wrong with a model; true when the model exists.
    pub fn set_faults(&self, id: &str, faults: Faults) -> bool {
        self.state().slots.get_mut(id).map(|slot| slot.model.faults = faults).is_some()
    }

    /// Changes anything of a model's script; true when the model exists.
    pub fn script(&self, id: &str, change: impl FnOnce(&mut MockModel)) -> bool {
        self.state().slots.get_mut(id).map(|slot| change(&mut slot.model)).is_some()
    }

    /// Sets `ready` of `/health`; a node that is not ready refuses generations.
    pub fn set_ready(&self, ready: bool) {
        self.state().ready = ready;
    }

    /// Cuts every open connection of the [`MockServer`], as a dying node would.
    pub fn cut_connections(&self) {
        self.node.cuts.send_modify(|cuts| *cuts += 1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.node.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn count(&self, change: impl FnOnce(&mut MockCounts)) {
        self.node.counts.send_modify(change);
    }
}

impl Slot {
    fn new(model: MockModel, status: ModelStatus) -> Self {
        let load_s = model.loaded.then_some(0.0);
        Self {
            model,
            status,
            generation: 0,
            wanted: None,
            active: 0,
            transition: None,
            load_s,
            prompt_tokens_total: 0,
            generated_tokens_total: 0,
        }
    }

    fn holds_memory(&self) -> bool {
        matches!(self.status, ModelStatus::Loaded | ModelStatus::Loading { .. } | ModelStatus::Unloading)
    }

    fn report(&self) -> ModelReport {
        ModelReport {
            id: self.model.id.clone(),
            status: self.status.clone(),
            capabilities: self.model.capabilities.clone(),
            architecture: Some("mock".into()),
            parameters: None,
            context: Some(self.model.context),
            devices: if self.holds_memory() { vec!["cpu-0".into()] } else { Vec::new() },
            memory_used_bytes: if self.holds_memory() { self.model.memory_bytes } else { 0 },
            generation: self.generation,
            load_s: self.load_s,
        }
    }

    fn health(&self) -> ModelHealth {
        ModelHealth {
            id: self.model.id.clone(),
            servable: self.status == ModelStatus::Loaded,
            running: self.active as u32,
            waiting: 0,
            kv_blocks_used: self.active as u32,
            kv_blocks_total: 256,
            generated_tokens_total: self.generated_tokens_total,
            prompt_tokens_total: self.prompt_tokens_total,
            cached_tokens_total: 0,
        }
    }
}

#[async_trait]
impl Harness for MockNeuron {
    fn discovery(&self) -> Discovery {
        Discovery {
            hostname: self.node.hostname.clone(),
            os: "mock".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            boot_id: self.node.boot_id.clone(),
            driver_version: None,
            cuda_version: None,
            gpu_note: Some("a mock has no GPU".into()),
            devices: vec![DeviceInfo {
                index: 0,
                name: "cpu-0".into(),
                kind: DeviceKind::Cpu,
                product: "mock".into(),
                memory_total_bytes: self.node.memory_total_bytes,
                compute_capability: None,
            }],
            harnesses: vec!["mock".into()],
        }
    }

    fn health(&self) -> Health {
        let state = self.state();
        let used = state.memory_used_bytes();
        let device = DeviceHealth {
            name: "cpu-0".into(),
            memory_used_bytes: used,
            memory_free_bytes: self.node.memory_total_bytes.saturating_sub(used),
            utilization_percent: None,
            temperature_c: None,
            poisoned: None,
        };
        let loaded = state.slots.values().filter(|slot| slot.status == ModelStatus::Loaded);
        let models = loaded.map(Slot::health).collect();
        Health { uptime_s: self.node.started.elapsed().as_secs_f64(), ready: state.ready, devices: vec![device], models }
    }

    fn models(&self) -> Vec<ModelReport> {
        self.state().slots.values().map(Slot::report).collect()
    }

    async fn load(&self, spec: ModelSpec) -> Result<ModelReport, HarnessError> {
        lifecycle::load(self, spec).await
    }

    async fn unload(&self, request: UnloadRequest) -> Result<(), HarnessError> {
        lifecycle::unload(self, request).await
    }

    async fn generate(&self, request: GenerateRequest) -> Result<EventStream, HarnessError> {
        generation::start(self, request).await
    }

    async fn embed(&self, request: EmbedRequest) -> Result<Embeddings, HarnessError> {
        self.state().serving(&request.model, Capability::Embeddings)?;
        let texts: Vec<String> = request.inputs.iter().map(script::prompt_text).collect();
        let prompt_tokens = texts.iter().map(|text| text.chars().count() as u32).sum();
        Ok(Embeddings { vectors: texts.iter().map(|text| script::vector(text)).collect(), prompt_tokens })
    }

    async fn rerank(&self, request: RerankRequest) -> Result<Relevances, HarnessError> {
        self.state().serving(&request.model, Capability::Rerank)?;
        let scores = request.documents.iter().map(|document| script::relevance(&request.query, document)).collect();
        let lens = request.documents.iter().map(|document| (request.query.chars().count() + document.chars().count()) as u32);
        Ok(Relevances { scores, prompt_tokens: lens.sum() })
    }

    async fn tokenize(&self, model: &ModelId, prompt: Prompt) -> Result<Vec<u32>, HarnessError> {
        self.state().loaded(model)?;
        Ok(script::tokens(&prompt))
    }

    async fn detokenize(&self, model: &ModelId, ids: Vec<u32>) -> Result<String, HarnessError> {
        self.state().loaded(model)?;
        Ok(script::text_of(&ids))
    }
}

impl State {
    fn memory_used_bytes(&self) -> u64 {
        self.slots.values().filter(|slot| slot.holds_memory()).map(|slot| slot.model.memory_bytes).sum()
    }

    fn slot(&mut self, id: &ModelId) -> Result<&mut Slot, HarnessError> {
        self.slots.get_mut(id).ok_or_else(|| HarnessError::ModelNotFound(id.clone()))
    }

    fn loaded(&mut self, id: &ModelId) -> Result<&mut Slot, HarnessError> {
        let slot = self.slot(id)?;
        match slot.status {
            ModelStatus::Loaded => Ok(slot),
            ModelStatus::Unloading => Err(HarnessError::ShuttingDown),
            _ => Err(HarnessError::ModelNotLoaded(id.clone())),
        }
    }

    fn serving(&mut self, id: &ModelId, capability: Capability) -> Result<&mut Slot, HarnessError> {
        let slot = self.loaded(id)?;
        if slot.model.capabilities.contains(&capability) {
            return Ok(slot);
        }
        Err(HarnessError::invalid("model", format!("the model `{id}` cannot be asked for {capability:?}").to_lowercase()))
    }
}
