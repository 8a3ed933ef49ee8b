//! What a device thread can be told.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::batch::Batch;
use crate::cache::kv_cache::CacheSpec;
use crate::device::collective::{Collective, Shard};
use crate::error::{DeviceError, LoadError};
use crate::image::PreparedImage;
use crate::models::config::ModelConfig;
use crate::models::qwen3_vl_vision::VisionSwitches;
use crate::sampler::Sampled;
use crate::sequence::SequenceId;
use crate::weights::Precision;

/// Names one load of one model, the same on all of its ranks and never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ModelKey(pub u64);

/// A command and the place for its answer. A dropped answer means that the device thread has ended.
pub enum Command {
    /// Reads this rank's part of a model.
    Load(ModelKey, Box<ShardLoad>, Reply<Result<ShardReport, LoadError>>),
    /// Allocates this many KV blocks, once, before the first step.
    Reserve(ModelKey, usize, Reply<Result<(), DeviceError>>),
    /// Runs one step of a decoder.
    Execute(ModelKey, Arc<StepInput>, Reply<Result<StepOutput, DeviceError>>),
    /// Turns token sequences into vectors with an encoder.
    Encode(ModelKey, Vec<Vec<u32>>, Reply<Result<Vec<Vec<f32>>, DeviceError>>),
    /// Frees a model; answered when its memory is back.
    Unload(ModelKey, Reply<()>),
    /// Ends the thread after the commands before it.
    Shutdown,
}

/// Where an answer goes. If nobody waits any more, the answer is dropped.
pub type Reply<T> = oneshot::Sender<T>;

/// What one rank loads.
pub struct ShardLoad {
    /// The checkpoint.
    pub folder: PathBuf,
    /// Its configuration.
    pub config: Arc<ModelConfig>,
    /// How weights are held.
    pub precision: Precision,
    /// Which part.
    pub shard: Shard,
    /// How this rank meets the others.
    pub comm: Arc<dyn Collective>,
    /// Departures of the vision tower from its training.
    pub vision: VisionSwitches,
}

/// One step and the pictures whose tokens are in it.
#[derive(Debug, Default)]
pub struct StepInput {
    /// Which tokens of which sequences.
    pub batch: Batch,
    /// At least the pictures that the batch names, in any order.
    pub images: Vec<Arc<PreparedImage>>,
}

/// What a rank holds after [`Command::Load`].
#[derive(Clone, Copy, Debug)]
pub struct ShardReport {
    /// The KV cache that it needs; `None` for an encoder.
    pub cache: Option<CacheSpec>,
    /// Bytes of weights on the device.
    pub weight_bytes: u64,
}

/// One sampled token per sequence whose chunk reached its last token. Only rank 0 samples; the others answer with an empty list.
#[derive(Debug, Default)]
pub struct StepOutput {
    /// In the order of the batch.
    pub sampled: Vec<(SequenceId, Sampled)>,
}
