//! What the daemon needs of an inference engine. The registry is tested with another implementer than the real one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cortex_core::{Capability, Embeddings, EventStream, GenerateRequest, HarnessError, ModelHealth, ModelSpec, Prompt, Relevances};
use futures::future::BoxFuture;
use neuron_engine::image::EncodedImage;

/// Loads models onto devices.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// The devices, as `/discovery` names them (`cpu-0`).
    fn device_names(&self) -> Vec<String>;
    /// Why each device does nothing any more, where that is so; in the order of the names.
    fn faults(&self) -> Vec<Option<String>>;
    /// Waits until a device fails, and tells why.
    fn failure(&self) -> BoxFuture<'static, String>;
    /// What the checkpoint in `folder` is, from its small files alone; `None` where they do not tell.
    fn describe(&self, folder: &Path) -> Option<Described>;
    /// Loads the checkpoint in `folder`. The error says what to do.
    async fn load(&self, spec: &ModelSpec, folder: PathBuf) -> Result<Arc<dyn Served>, String>;
    /// Lets go of the devices, for the process is about to end.
    async fn shutdown(&self);
}

/// A model in memory.
#[async_trait]
pub trait Served: Send + Sync + 'static {
    /// What does not change while it is loaded.
    fn info(&self) -> ServedInfo;
    /// Figures of this moment.
    fn health(&self) -> ModelHealth;
    /// Waits until it breaks in a way that only a new load mends, and tells why. Does not keep the model in memory.
    fn lost(&self) -> BoxFuture<'static, String>;
    /// As [`cortex_core::Harness::generate`]; `images` are encoded pictures in order of appearance.
    async fn generate(&self, request: GenerateRequest, images: Vec<EncodedImage>) -> Result<EventStream, HarnessError>;
    /// As [`cortex_core::Harness::embed`].
    async fn embed(&self, inputs: Vec<Prompt>) -> Result<Embeddings, HarnessError>;
    /// As [`cortex_core::Harness::rerank`].
    async fn rerank(&self, query: String, documents: Vec<String>) -> Result<Relevances, HarnessError>;
    /// As [`cortex_core::Harness::tokenize`].
    async fn tokenize(&self, prompt: Prompt, images: Vec<EncodedImage>) -> Result<Vec<u32>, HarnessError>;
    /// As [`cortex_core::Harness::detokenize`].
    fn detokenize(&self, ids: &[u32]) -> Result<String, HarnessError>;
    /// Lets running generations end for at most `drain`, then frees everything; answers when the memory is back.
    async fn unload(&self, drain: Duration);
}

/// What is known of a model before it is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// The family (`qwen3_vl`).
    pub architecture: String,
    /// What it can be asked for.
    pub capabilities: Vec<Capability>,
}

/// What a loaded model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedInfo {
    /// The family (`qwen3_vl`).
    pub architecture: String,
    /// Number of parameters.
    pub parameters: u64,
    /// Longest sequence in tokens.
    pub context: usize,
    /// What it can be asked for.
    pub capabilities: Vec<Capability>,
    /// The devices that hold it.
    pub devices: Vec<String>,
    /// Bytes of weights and KV cache on the devices.
    pub memory_bytes: u64,
}

impl ServedInfo {
    /// True when it reads pictures.
    pub fn sees(&self) -> bool {
        self.capabilities.contains(&Capability::Vision)
    }
}
