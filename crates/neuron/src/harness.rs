//! The node's abilities over an engine: models are found, fetched, loaded once however many ask, served, and unloaded.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cortex_core::{
    Discovery, EmbedRequest, Embeddings, EventStream, GenerateRequest, Harness, HarnessError, Health, ModelId, ModelReport, ModelSpec,
    Prompt, Relevances, RerankRequest, UnloadRequest,
};
use futures::future::BoxFuture;
use neuron_engine::image::EncodedImage;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::backend::{Backend, Served};
use crate::config::NeuronConfig;
use crate::discovery::discover;
use crate::download::{DownloadError, Downloader, ProgressFn};
use crate::gpu::Driver;
use crate::health;
use crate::images::Images;
use crate::registry::{LoadJob, LoadStep, Outcome, Registry, Revival, UnloadStep};
use crate::source::ModelSource;

/// The real node: candle behind [`Harness`].
#[derive(Clone)]
pub struct CandleHarness {
    node: Arc<Node>,
}

struct Node {
    backend: Arc<dyn Backend>,
    downloader: Downloader,
    images: Images,
    driver: Driver,
    discovery: Discovery,
    device_names: Vec<String>,
    started: Instant,
    /// How long an unload lets running generations go on.
    drain_max: Duration,
    /// Held for bookkeeping only, never while something is awaited.
    registry: Mutex<Registry>,
}

/// Share of a load's percentage that fetching takes, where something must be fetched; reading the weights is the rest.
const FETCH_PERCENT: u32 = 90;

impl CandleHarness {
    /// A node that serves the models of `config` with `backend`.
    pub fn new(config: &NeuronConfig, backend: Arc<dyn Backend>) -> anyhow::Result<Self> {
        let downloader = Downloader::new(&config.hub)?;
        let images = Images::new(config.images.clone()).map_err(anyhow::Error::msg)?;
        let driver = Driver::open();
        let device_names = backend.device_names();
        let discovery = discover(&device_names, &driver.facts());
        let describe = |spec: &ModelSpec| backend.describe(&folder_here(spec, &downloader)?);
        let registry = Mutex::new(Registry::new(&config.models, describe));
        let started = Instant::now();
        let drain_max = Duration::from_secs(config.drain_s_max);
        let node = Node { backend, downloader, images, driver, discovery, device_names, started, drain_max, registry };
        Ok(Self { node: Arc::new(node) })
    }

    /// From now on `models` are what this node may serve. Nothing is loaded or unloaded by that.
    pub fn configure(&self, models: &[ModelSpec]) {
        let node = &self.node;
        let describe = |spec: &ModelSpec| node.backend.describe(&folder_here(spec, &node.downloader)?);
        let described = models.iter().map(|spec| (spec.clone(), describe(spec))).collect();
        node.registry().configure(described);
    }

    /// From now on the node is not ready: running generations go on, and everything new is refused.
    pub fn begin_drain(&self) {
        self.node.registry().drain();
    }

    /// Unloads every model, whose generations may go on for at most `drain`, and lets go of the devices. Call
    /// [`CandleHarness::begin_drain`] first.
    pub async fn shutdown(&self, drain: Duration) {
        let ids = self.node.registry().ids();
        let unloads = ids.into_iter().map(|id| async move {
            if let Err(error) = self.unload_model(&id, None, drain).await {
                tracing::warn!(model = %id, "cannot unload: {error}");
            }
        });
        futures::future::join_all(unloads).await;
        self.node.backend.shutdown().await;
    }

    /// Waits until a device fails, and tells why.
    pub fn device_failure(&self) -> BoxFuture<'static, String> {
        self.node.backend.failure()
    }

    /// What is in memory, as it was asked for.
    pub fn loaded(&self) -> Vec<ModelSpec> {
        self.node.registry().loaded()
    }

    async fn unload_model(&self, id: &ModelId, generation: Option<u64>, drain: Duration) -> Result<(), HarnessError> {
        loop {
            let step = self.node.registry().begin_unload(id, generation)?;
            match step {
                UnloadStep::Gone => return Ok(()),
                // A load that stopped in time left nothing; one that did not must be unloaded.
                UnloadStep::AfterLoad(outcome) => match ended(outcome).await {
                    Err(HarnessError::ShuttingDown) => return Ok(()),
                    _ => continue,
                },
                // Not asked again: what is loaded after this unload is somebody's newer wish.
                UnloadStep::Join(mut gone) => {
                    while gone.changed().await.is_ok() {}
                    return Ok(());
                }
                UnloadStep::Start(model, sender) => {
                    // In its own task: a caller that goes away does not leave a model half unloaded.
                    let (node, id) = (self.node.clone(), id.clone());
                    let unloading = tokio::spawn(async move { node.unload(&id, model, drain, sender).await });
                    return unloading.await.map_err(|error| HarnessError::Internal(format!("the unload broke off: {error}")));
                }
            }
        }
    }
}

#[async_trait]
impl Harness for CandleHarness {
    fn discovery(&self) -> Discovery {
        self.node.discovery.clone()
    }

    fn health(&self) -> Health {
        let node = &self.node;
        let devices = health::devices(&node.device_names, node.backend.faults(), &node.driver);
        let registry = node.registry();
        Health { uptime_s: node.started.elapsed().as_secs_f64(), ready: !registry.is_draining(), devices, models: registry.health() }
    }

    fn models(&self) -> Vec<ModelReport> {
        self.node.registry().reports()
    }

    async fn load(&self, spec: ModelSpec) -> Result<ModelReport, HarnessError> {
        loop {
            let step = self.node.registry().begin_load(&spec)?;
            match step {
                LoadStep::Loaded(report) => return Ok(report),
                LoadStep::Join(outcome) => return ended(outcome).await,
                LoadStep::AfterLoad(outcome) => drop(ended(outcome).await),
                LoadStep::AfterUnload(mut gone) => while gone.changed().await.is_ok() {},
                LoadStep::Start(job, outcome) => {
                    // In its own task: the first caller may go away, the others still wait.
                    tokio::spawn(self.node.clone().carry_out(job));
                    return ended(outcome).await;
                }
            }
        }
    }

    async fn unload(&self, request: UnloadRequest) -> Result<(), HarnessError> {
        self.unload_model(&request.model_id, request.generation, self.node.drain_max).await
    }

    async fn generate(&self, request: GenerateRequest) -> Result<EventStream, HarnessError> {
        let model = self.node.registry().serving(&request.model)?;
        let images = self.node.pictures(&request.prompt, model.as_ref()).await?;
        model.generate(request, images).await
    }

    async fn embed(&self, request: EmbedRequest) -> Result<Embeddings, HarnessError> {
        let model = self.node.registry().serving(&request.model)?;
        model.embed(request.inputs).await
    }

    async fn rerank(&self, request: RerankRequest) -> Result<Relevances, HarnessError> {
        let model = self.node.registry().serving(&request.model)?;
        model.rerank(request.query, request.documents).await
    }

    async fn tokenize(&self, model: &ModelId, prompt: Prompt) -> Result<Vec<u32>, HarnessError> {
        let model = self.node.registry().serving(model)?;
        let images = self.node.pictures(&prompt, model.as_ref()).await?;
        model.tokenize(prompt, images).await
    }

    async fn detokenize(&self, model: &ModelId, ids: Vec<u32>) -> Result<String, HarnessError> {
        let model = self.node.registry().serving(model)?;
        blocking(move || model.detokenize(&ids)).await?
    }
}

impl Node {
    /// The bookkeeping stays whole when a holder panics, since each of its methods changes one thing.
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pictures(&self, prompt: &Prompt, model: &dyn Served) -> Result<Vec<EncodedImage>, HarnessError> {
        match prompt {
            Prompt::Chat(chat) => self.images.collect(chat, model.info().sees()).await,
            Prompt::Text(_) | Prompt::Tokens(_) | Prompt::Infill { .. } => Ok(Vec::new()),
        }
    }

    /// Loads, notes the outcome, and tells everybody who waits. A panic on the way is an outcome, too.
    async fn carry_out(self: Arc<Self>, job: LoadJob) {
        let LoadJob { spec, outcome, cancel } = job;
        let started = Instant::now();
        let node = self.clone();
        let wanted = spec.clone();
        let loading = tokio::spawn(async move { cancel.run_until_cancelled(node.fetch(&wanted)).await });
        let folder = match loading.await {
            Ok(Some(folder)) => folder,
            Ok(None) => Err(HarnessError::ShuttingDown),
            Err(error) => Err(HarnessError::Internal(format!("the load broke off: {error}"))),
        };
        let result = match folder {
            Ok(folder) => self.clone().read(&spec, folder).await,
            Err(error) => Err(error),
        };
        let load_s = started.elapsed().as_secs_f64();
        match &result {
            Ok(_) => tracing::info!(model = %spec.model_id, load_s, "loaded"),
            Err(error) => tracing::warn!(model = %spec.model_id, "{error}"),
        }
        let model = result.as_ref().ok().map(|model| (Arc::downgrade(model), model.lost()));
        let (id, watch) = (spec.model_id.clone(), CancellationToken::new());
        let told = self.registry().settle(spec, result, load_s, watch.clone().drop_guard());
        if let Some((model, lost)) = model {
            tokio::spawn(self.clone().stand_by(id, model, lost, watch));
        }
        outcome.send_replace(Some(told));
    }

    /// Until the model is to leave memory: brings it back when it breaks.
    fn stand_by(
        self: Arc<Self>,
        id: ModelId,
        model: Weak<dyn Served>,
        lost: BoxFuture<'static, String>,
        watch: CancellationToken,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let Some(reason) = watch.run_until_cancelled(lost).await else { return };
            let Some(model) = model.upgrade() else { return };
            let Some(revival) = self.registry().begin_revival(&id, &model, &reason, Instant::now()) else { return };
            tracing::error!(model = %id, "broken, and loaded anew: {reason}");
            // Nothing of it goes on; this frees its memory.
            if let Err(error) = tokio::spawn(async move { model.unload(Duration::ZERO).await }).await {
                tracing::error!(model = %id, "the unload broke off: {error}");
            }
            match revival {
                Revival::Load(job) => self.carry_out(job).await,
                Revival::GiveUp(reason) => tracing::error!(model = %id, "{reason}"),
            }
        })
    }

    /// The folder of the model's files, fetched where it must be.
    async fn fetch(self: Arc<Self>, spec: &ModelSpec) -> Result<PathBuf, HarnessError> {
        let cannot = |reason: String| HarnessError::CannotLoad { model: spec.model_id.clone(), reason };
        match ModelSource::of(spec, &Path::is_dir).map_err(|error| cannot(error.to_string()))? {
            ModelSource::Folder(folder) => Ok(folder),
            ModelSource::Hub { repo, revision } => {
                let (node, id) = (self.clone(), spec.model_id.clone());
                let tell: ProgressFn = Arc::new(move |percent| {
                    let share = u32::from(percent) * FETCH_PERCENT / 100;
                    node.registry().progress(&id, u8::try_from(share).unwrap_or(100));
                });
                let fetched = self.downloader.snapshot(&repo, &revision, tell).await;
                fetched.map_err(|error: DownloadError| cannot(error.to_string()))
            }
        }
    }

    /// Reads the weights onto the devices. Not interrupted by an unload, which waits and then frees what was read.
    async fn read(self: Arc<Self>, spec: &ModelSpec, folder: PathBuf) -> Result<Arc<dyn Served>, HarnessError> {
        let (backend, wanted) = (self.backend.clone(), spec.clone());
        let reading = tokio::spawn(async move { backend.load(&wanted, folder).await });
        match reading.await {
            Ok(Ok(model)) => Ok(model),
            Ok(Err(reason)) => Err(HarnessError::CannotLoad { model: spec.model_id.clone(), reason }),
            Err(error) => Err(HarnessError::Internal(format!("the load broke off: {error}"))),
        }
    }

    async fn unload(self: Arc<Self>, id: &ModelId, model: Arc<dyn Served>, drain: Duration, gone: watch::Sender<()>) {
        let started = Instant::now();
        // A panic in there must not leave the model unloading for ever.
        if let Err(error) = tokio::spawn(async move { model.unload(drain).await }).await {
            tracing::error!(model = %id, "the unload broke off: {error}");
        }
        self.registry().unloaded(id);
        tracing::info!(model = %id, unload_s = started.elapsed().as_secs_f64(), "unloaded");
        drop(gone);
    }
}

/// Where the model's files are, if they are on this host already.
fn folder_here(spec: &ModelSpec, downloader: &Downloader) -> Option<PathBuf> {
    match ModelSource::of(spec, &Path::is_dir).ok()? {
        ModelSource::Folder(folder) => Some(folder),
        ModelSource::Hub { repo, revision } => downloader.cached(&repo, &revision),
    }
}

/// Waits for a load's outcome.
async fn ended(mut outcome: Outcome) -> Result<ModelReport, HarnessError> {
    let ended = outcome.wait_for(Option::is_some).await;
    let told = ended.ok().and_then(|outcome| outcome.clone());
    told.unwrap_or_else(|| Err(HarnessError::Internal("the load broke off".to_owned())))
}

/// Runs what may take a while on long texts beside the runtime's workers.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, HarnessError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| HarnessError::Internal(error.to_string()))
}
