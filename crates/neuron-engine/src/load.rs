//! From a folder to a [`LoadedModel`]: configuration, devices, weights, KV cache, engine thread.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use candle_core::DType;
use cortex_core::ModelId;
use futures::future::join_all;
use tokio::sync::{Semaphore, mpsc};

use crate::cache::block_manager::BlockManager;
use crate::cache::kv_cache::BLOCK_SIZE;
use crate::device::command::{ModelKey, ShardLoad, ShardReport};
use crate::device::memory::Memory;
use crate::device::{DeviceSet, Rank, RankGroup};
use crate::engine::Engine;
use crate::error::LoadError;
use crate::frontend::{Frontend, RopePositions};
use crate::kv_plan::KvPlan;
use crate::loaded::{EngineDoor, Inner, LoadedModel, ModelInfo};
use crate::models::config::ModelConfig;
use crate::models::qwen3_vl_vision::VisionSwitches;
use crate::models::registry::load_config;
use crate::scheduler::{Limits, Scheduler};
use crate::stats::EngineStats;
use crate::weights::{Precision, Totals, Weights};

/// How to load.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// `f32`, `bf16` or `f16`; absent: as the checkpoint stores them.
    pub dtype: Option<String>,
    /// Over how many devices each layer is split.
    pub tensor_parallel: usize,
    /// Which devices; absent: the first ones.
    pub devices: Option<Vec<usize>>,
    /// Longest sequence in tokens; absent: the checkpoint's own, or what memory allows.
    pub context: Option<usize>,
    /// Sequences of full length that the KV cache has room for.
    pub parallel: usize,
    /// Bytes that the KV cache may take; absent: half of what is free.
    pub kv_bytes_max: Option<u64>,
    /// Bounds of the engine.
    pub limits: EngineLimits,
    /// Departures from the model's trained behaviour, for comparison.
    pub switches: Switches,
}

/// Bounds of one model's engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineLimits {
    /// Tokens in one step, prompts and answers together.
    pub step_tokens_max: usize,
    /// Sequences in one step.
    pub running_max: usize,
    /// Sequences that may wait.
    pub waiting_max: usize,
    /// Whether equal prompt beginnings share KV blocks.
    pub prefix_cache: bool,
    /// Whether the next step is planned and handed over while the device computes this one.
    pub lookahead: bool,
    /// A step of a split model that takes longer is taken for one whose ranks wait for each other in vain, and given up.
    pub step_max: Duration,
}

/// For A/B comparison only; the default is what the model was trained for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Switches {
    /// Inside the vision tower.
    pub vision: VisionSwitches,
    /// In the text model.
    pub positions: RopePositions,
}

impl Default for EngineLimits {
    fn default() -> Self {
        Self {
            step_tokens_max: 512,
            running_max: 128,
            waiting_max: 1024,
            prefix_cache: true,
            lookahead: true,
            step_max: Duration::from_secs(30),
        }
    }
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            dtype: None,
            tensor_parallel: 1,
            devices: None,
            context: None,
            parallel: 4,
            kv_bytes_max: None,
            limits: EngineLimits::default(),
            switches: Switches::default(),
        }
    }
}

/// Waiting prompts may need this many times the KV cache.
const QUEUE_FACTOR: usize = 4;

/// Tokens of prompts scored in one step: as many rows of logits as the answers of a full step have.
const STEP_SCORES_MAX: usize = 128;

static NEXT_KEY: AtomicU64 = AtomicU64::new(0);

/// Loads a model and answers when it serves.
pub async fn load(devices: &DeviceSet, id: ModelId, folder: PathBuf, options: LoadOptions) -> Result<LoadedModel, LoadError> {
    let started = Instant::now();
    let dtype = held_as(options.dtype.as_deref())?;
    let ranks = devices.ranks(options.tensor_parallel, options.devices.as_deref())?;
    let group = devices.group(&ranks, options.limits.step_max).map_err(|error| LoadError::Device(error.to_string()))?;
    let checkpoint = Checkpoint::open(folder, options.switches).await?;
    let precision = checkpoint.precision(dtype, group.first().is_gpu());
    let memory = group.first().memory().await.map_err(|error| LoadError::Device(error.to_string()))?;
    checkpoint.check_fits(precision, memory, ranks.len())?;
    let key = ModelKey(NEXT_KEY.fetch_add(1, Relaxed));
    let loaded = load_on(ranks, &group, key, &checkpoint, precision, &options).await;
    if loaded.is_err() {
        // A half-loaded model gives its memory back.
        join_all(group.devices().iter().map(|device| device.unload(key))).await;
    }
    let Loaded { kv, reports } = loaded?;
    let stats = Arc::new(EngineStats::default());
    let engine = match kv {
        Some(kv) => Some(start_engine(&id, kv, options.limits, group.clone(), key, checkpoint.frontend.end_tokens(), stats.clone())?),
        None => None,
    };
    let info = checkpoint.info(id, kv, &reports, &group, started);
    Ok(LoadedModel::new(Inner {
        info,
        frontend: Arc::new(checkpoint.frontend),
        ranks: group,
        key,
        stats,
        engine,
        preparing: Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from)),
        next_sequence: AtomicU64::new(0),
    }))
}

/// What the folder's small files say.
struct Checkpoint {
    folder: PathBuf,
    config: Arc<ModelConfig>,
    frontend: Frontend,
    totals: Totals,
}

impl Checkpoint {
    async fn open(folder: PathBuf, switches: Switches) -> Result<Self, LoadError> {
        let read = move || {
            let config = load_config(&folder)?;
            let frontend = Frontend::open(&folder, &config, switches.positions)?;
            let totals = Weights::open(&folder, &candle_core::Device::Cpu, Precision::CPU)?.totals();
            Ok(Self { folder, config: Arc::new(config), frontend, totals })
        };
        tokio::task::spawn_blocking(read).await.map_err(|error| LoadError::Device(format!("reading the checkpoint failed: {error}")))?
    }

    /// A processor holds matrices as asked or as stored and computes in f32; a GPU holds and computes everything in one type.
    fn precision(&self, dtype: Option<DType>, on_gpu: bool) -> Precision {
        match on_gpu {
            false => Precision { matrices: dtype, ..Precision::CPU },
            true => {
                let dtype = dtype.or(self.totals.dtype).unwrap_or(DType::BF16);
                Precision { matrices: Some(dtype), activations: dtype }
            }
        }
    }

    /// Refuses before a byte of weights is read.
    fn check_fits(&self, precision: Precision, memory: Memory, ranks: usize) -> Result<(), LoadError> {
        let whole = precision.matrices.map_or(self.totals.bytes, |dtype| self.totals.parameters * dtype.size_in_bytes() as u64);
        let need = whole / ranks as u64;
        if need <= memory.free {
            return Ok(());
        }
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let (need, free) = (gib(need), gib(memory.free));
        Err(LoadError::Device(format!("the weights need {need:.1} GiB, but {free:.1} GiB are free; unload a model first")))
    }

    fn info(&self, id: ModelId, kv: Option<KvPlan>, reports: &[ShardReport], group: &RankGroup, started: Instant) -> ModelInfo {
        let kv_bytes =
            |kv: KvPlan| reports.iter().filter_map(|report| report.cache).map(|spec| (spec.block_bytes() * kv.blocks) as u64).sum();
        ModelInfo {
            id,
            architecture: self.config.architecture.to_string(),
            parameters: self.totals.parameters,
            context: kv.map_or(self.config.context_len_max, |kv| kv.context),
            capabilities: self.config.capabilities(),
            devices: group.devices().iter().map(|device| device.name().to_string()).collect(),
            weight_bytes: reports.iter().map(|report| report.weight_bytes).sum(),
            kv_bytes: kv.map_or(0, kv_bytes),
            load_time: started.elapsed(),
        }
    }
}

/// What [`load_on`] leaves on the devices.
struct Loaded {
    /// Absent for an encoder.
    kv: Option<KvPlan>,
    reports: Vec<ShardReport>,
}

/// Weights on every rank at once, then a KV cache of the same size on each.
async fn load_on(
    ranks: Vec<Rank>,
    group: &RankGroup,
    key: ModelKey,
    checkpoint: &Checkpoint,
    precision: Precision,
    options: &LoadOptions,
) -> Result<Loaded, LoadError> {
    let shard = |rank: &Rank| ShardLoad {
        folder: checkpoint.folder.clone(),
        config: checkpoint.config.clone(),
        precision,
        shard: rank.shard,
        comm: rank.comm.clone(),
        vision: options.switches.vision,
    };
    let reports = group.load(key, ranks.iter().map(shard).collect()).await?;
    let Some(spec) = reports[0].cache else { return Ok(Loaded { kv: None, reports }) };
    let memory = group.first().memory().await.map_err(|error| LoadError::Device(error.to_string()))?;
    // On a GPU every rank has its own; on a processor they share.
    let free = if group.first().is_gpu() { memory.free } else { memory.free / reports.len() as u64 };
    let kv = KvPlan::new(spec.block_bytes() as u64, checkpoint.config.context_len_max, free, options)?;
    let reserved = join_all(group.devices().iter().map(|device| device.reserve(key, kv.blocks))).await;
    reserved.into_iter().collect::<Result<Vec<()>, _>>().map_err(|error| LoadError::Device(error.to_string()))?;
    Ok(Loaded { kv: Some(kv), reports })
}

fn start_engine(
    id: &ModelId,
    kv: KvPlan,
    limits: EngineLimits,
    ranks: RankGroup,
    key: ModelKey,
    end_tokens: &[u32],
    stats: Arc<EngineStats>,
) -> Result<EngineDoor, LoadError> {
    let EngineLimits { step_tokens_max, running_max, waiting_max, prefix_cache, lookahead, .. } = limits;
    let (commands, inbox) = mpsc::channel(waiting_max);
    let blocks = BlockManager::new(kv.blocks, BLOCK_SIZE, prefix_cache);
    let limits = Limits { step_tokens_max, step_scores_max: STEP_SCORES_MAX, running_max, waiting_max, lookahead };
    let scheduler = Scheduler::new(limits, blocks);
    stats.observe(&scheduler);
    let engine = Engine::new(inbox, scheduler, ranks, key, end_tokens.to_vec(), stats);
    let thread = std::thread::Builder::new().name(format!("engine {id}"));
    thread.spawn(move || engine.run()).map_err(|error| LoadError::Device(format!("cannot start the engine's thread: {error}")))?;
    Ok(EngineDoor { commands, places: Arc::new(Semaphore::new(QUEUE_FACTOR * kv.blocks)) })
}

/// How matrices are to be held; `None`: as stored.
fn held_as(dtype: Option<&str>) -> Result<Option<DType>, LoadError> {
    Ok(match dtype {
        None => None,
        Some("f32") => Some(DType::F32),
        Some("bf16") => Some(DType::BF16),
        Some("f16") => Some(DType::F16),
        Some(other) => return Err(LoadError::Unsupported(format!("dtype `{other}`; choose f32, bf16 or f16, or leave it out"))),
    })
}
