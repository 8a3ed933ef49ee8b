//! What a device thread can be told.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use crate::batch::{Asked, Batch};
use crate::cache::kv_cache::CacheSpec;
use crate::device::collective::{Collective, Shard};
use crate::device::limits::DeviceLimits;
use crate::device::memory::Memory;
use crate::error::{DeviceError, LoadError};
use crate::image::PreparedImage;
use crate::models::EncoderInput;
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
    /// Starts one step of a decoder. The next command is taken as soon as the runner lets go, perhaps before this one's answer.
    Execute(ModelKey, Arc<StepInput>, StepReply),
    /// Turns token sequences into vectors with an encoder.
    Encode(ModelKey, Vec<EncoderInput>, Reply<Result<Vec<Vec<f32>>, DeviceError>>),
    /// Tells how much memory the device has.
    Memory(Reply<Result<Memory, DeviceError>>),
    /// Measures what the device can do at best. Steps of models wait meanwhile.
    Limits(Reply<Result<DeviceLimits, DeviceError>>),
    /// Frees a model; answered when its memory is back.
    Unload(ModelKey, Reply<()>),
    /// Makes the device fail, for tests.
    Fail(Reply<Result<(), DeviceError>>),
    /// Ends the thread after the commands before it.
    Shutdown,
}

/// Where an answer goes. If nobody waits any more, the answer is dropped.
pub type Reply<T> = oneshot::Sender<T>;

/// Where the outcome of a step goes. Whoever has it answers: the device's thread, or one that a runner hands this to while the
/// device computes. The first answer counts. When the last clone is dropped without one, the engine sees [`DeviceError::Gone`].
#[derive(Clone)]
pub struct StepReply(Arc<Mutex<Option<Reply<StepOutcome>>>>);

/// What has become of a step.
pub type StepOutcome = Result<StepOutput, DeviceError>;

impl StepReply {
    /// A place for one answer, and where to wait for it.
    pub fn new() -> (Self, oneshot::Receiver<StepOutcome>) {
        let (reply, answer) = oneshot::channel();
        (Self(Arc::new(Mutex::new(Some(reply)))), answer)
    }

    /// Answers, unless somebody has. If nobody waits any more, the answer is dropped.
    pub fn answer(&self, outcome: StepOutcome) {
        let reply = self.0.lock().expect("no holder panics").take();
        let _ = reply.map(|reply| reply.send(outcome));
    }
}

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

/// What the logits of a step say. Only rank 0 tells; the others answer with empty lists.
#[derive(Debug, Default)]
pub struct StepOutput {
    /// One token per sequence whose chunk reached its last token, in the order of the batch. A sequence whose pending token was lost in a
    /// failed step is not among them.
    pub sampled: Vec<(SequenceId, Sampled)>,
    /// The tokens of prompts that were scored, in the order of the batch.
    pub scored: Vec<(SequenceId, Sampled)>,
}

impl FromIterator<(Asked, Sampled)> for StepOutput {
    fn from_iter<I: IntoIterator<Item = (Asked, Sampled)>>(answers: I) -> Self {
        let mut output = Self::default();
        for (Asked { id, scores }, token) in answers {
            let list = if scores { &mut output.scored } else { &mut output.sampled };
            list.push((id, token));
        }
        output
    }
}
