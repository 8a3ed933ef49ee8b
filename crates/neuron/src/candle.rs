//! The real engine as a [`Backend`].

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cortex_core::{Embeddings, EventStream, GenerateRequest, HarnessError, ModelHealth, ModelSpec, Prompt, Relevances};
use futures::future::BoxFuture;
use neuron_engine::frontend::RopePositions;
use neuron_engine::image::EncodedImage;
use neuron_engine::models::qwen3_vl_vision::VisionSwitches;
use neuron_engine::models::registry::load_config;
use neuron_engine::{DeviceSet, EngineLimits, LoadOptions, LoadedModel, Switches};

use tracing::info;

use crate::backend::{Backend, Described, Served, ServedInfo};
use crate::config::{Limits, NeuronConfig, VisionConfig};

/// The engine over this host's devices.
pub struct CandleBackend {
    devices: DeviceSet,
    limits: Limits,
    vision: VisionConfig,
}

impl CandleBackend {
    /// Starts a thread for each device: the GPUs, or the processors where there is none or the configuration prefers them.
    pub fn new(config: &NeuronConfig) -> std::io::Result<Self> {
        let devices = match config.cpu.only {
            true => DeviceSet::cpu(config.cpu.ranks)?,
            false => {
                let (devices, why_not) = DeviceSet::detect(config.cpu.ranks)?;
                if let Some(why_not) = why_not {
                    info!("serving on the CPU: {why_not}");
                }
                devices
            }
        };
        Ok(Self::over(devices, config))
    }

    /// The engine over these devices.
    pub fn over(devices: DeviceSet, config: &NeuronConfig) -> Self {
        Self { devices, limits: config.limits, vision: config.vision }
    }

    /// What the model asks, in the engine's words.
    fn options(&self, spec: &ModelSpec) -> LoadOptions {
        let defaults = LoadOptions::default();
        LoadOptions {
            dtype: spec.dtype.clone(),
            tensor_parallel: spec.tensor_parallel.unwrap_or_else(|| spec.devices.as_ref().map_or(1, Vec::len)),
            devices: spec.devices.clone(),
            context: spec.context,
            parallel: spec.parallel.unwrap_or(defaults.parallel),
            kv_bytes_max: self.limits.kv_cache_mib_max.map(|mib| mib << 20),
            limits: EngineLimits {
                step_tokens_max: self.limits.step_tokens_max,
                running_max: self.limits.running_sequences_max,
                waiting_max: self.limits.waiting_sequences_max,
                ..defaults.limits
            },
            switches: self.switches(),
        }
    }

    fn switches(&self) -> Switches {
        let VisionConfig { legacy_positions, legacy_rope, mrope } = self.vision;
        let positions = if mrope { RopePositions::Spatial } else { RopePositions::Sequential };
        Switches { vision: VisionSwitches { legacy_positions, legacy_rope }, positions }
    }
}

#[async_trait]
impl Backend for CandleBackend {
    fn device_names(&self) -> Vec<String> {
        self.devices.names()
    }

    fn faults(&self) -> Vec<Option<String>> {
        self.devices.faults()
    }

    fn failure(&self) -> BoxFuture<'static, String> {
        self.devices.failure()
    }

    fn describe(&self, folder: &Path) -> Option<Described> {
        let config = load_config(folder).ok()?;
        Some(Described { architecture: config.architecture.to_owned(), capabilities: config.capabilities() })
    }

    async fn shutdown(&self) {
        self.devices.shutdown().await;
    }

    async fn load(&self, spec: &ModelSpec, folder: PathBuf) -> Result<Arc<dyn Served>, String> {
        if let Some(quant) = spec.quant.as_deref().filter(|quant| *quant != "none") {
            return Err(format!("quant = `{quant}` is not supported: leave it out, or choose dtype = `bf16`"));
        }
        let loaded = neuron_engine::load(&self.devices, spec.model_id.clone(), folder, self.options(spec)).await;
        loaded.map(|model| Arc::new(CandleModel(model)) as Arc<dyn Served>).map_err(|error| error.to_string())
    }
}

struct CandleModel(LoadedModel);

#[async_trait]
impl Served for CandleModel {
    fn info(&self) -> ServedInfo {
        let info = self.0.info();
        ServedInfo {
            architecture: info.architecture.clone(),
            parameters: info.parameters,
            context: info.context,
            capabilities: info.capabilities.clone(),
            devices: info.devices.clone(),
            memory_bytes: info.weight_bytes + info.kv_bytes,
        }
    }

    fn health(&self) -> ModelHealth {
        self.0.health()
    }

    fn lost(&self) -> BoxFuture<'static, String> {
        self.0.lost()
    }

    async fn generate(&self, request: GenerateRequest, images: Vec<EncodedImage>) -> Result<EventStream, HarnessError> {
        self.0.generate(request, images).await
    }

    async fn embed(&self, inputs: Vec<Prompt>) -> Result<Embeddings, HarnessError> {
        self.0.embed(inputs).await
    }

    async fn rerank(&self, query: String, documents: Vec<String>) -> Result<Relevances, HarnessError> {
        self.0.rerank(query, documents).await
    }

    async fn tokenize(&self, prompt: Prompt, images: Vec<EncodedImage>) -> Result<Vec<u32>, HarnessError> {
        self.0.tokenize(prompt, images).await
    }

    fn detokenize(&self, ids: &[u32]) -> Result<String, HarnessError> {
        self.0.detokenize(ids)
    }

    async fn unload(&self, drain: Duration) {
        self.0.unload(drain).await;
    }
}
