//! A model as the fleet names it: its id, how to load it, and what a node reports of it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The name under which clients ask for a model. Ids may contain slashes (`Qwen/Qwen3-8B`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ModelId(String);

impl ModelId {
    /// The id as clients write it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<S: Into<String>> From<S> for ModelId {
    fn from(id: S) -> Self {
        Self(id.into())
    }
}

impl std::borrow::Borrow<str> for ModelId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// What a model can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capability {
    /// `/v1/chat/completions` and `/v1/completions`.
    Chat,
    /// `/v1/embeddings`.
    Embeddings,
    /// `/v1/rerank`.
    Rerank,
    /// Pictures in chat messages.
    Vision,
}

/// The body of `POST /models/load`, and one `[[models]]` entry of neuron's configuration: everything needed to load a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// The id clients will use.
    pub model_id: ModelId,
    /// A folder on the node, or a hub id. Absent: the node's own entry for `model_id`, or else the id itself as a hub id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The hub's branch, tag or commit; `main` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// How the weights are held: `f32`, `bf16`, `f16`. Absent: the device's natural one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    /// Quantization applied while loading; `none` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quant: Option<String>,
    /// Over how many devices each layer is split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensor_parallel: Option<usize>,
    /// The device indices to use. Absent: the first `tensor_parallel` devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<Vec<usize>>,
    /// Longest sequence (prompt and answer), in tokens. Absent: the checkpoint's own limit, capped by memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<usize>,
    /// Concurrent sequences of full `context` that the KV cache is sized for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel: Option<usize>,
    /// Orders the actions of several gateways: a node refuses one that is not newer than the last that it accepted for the model, unless it
    /// is that one once more. Numbers begin at 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

impl ModelSpec {
    /// The smallest spec: this id, everything else by default.
    pub fn new(model_id: impl Into<ModelId>) -> Self {
        Self {
            model_id: model_id.into(),
            source: None,
            revision: None,
            dtype: None,
            quant: None,
            tensor_parallel: None,
            devices: None,
            context: None,
            parallel: None,
            generation: None,
        }
    }
}

/// The body of `POST /models/unload`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnloadRequest {
    /// The model to unload.
    pub model_id: ModelId,
    /// As in [`ModelSpec::generation`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// Where a model stands on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ModelStatus {
    /// Known and loadable, not in memory.
    Available,
    /// Being fetched or read.
    Loading {
        /// Share done, 0 to 100.
        percent: u8,
    },
    /// In memory, serving.
    Loaded,
    /// Draining, then leaving memory.
    Unloading,
    /// The last load failed; a new load tries again.
    Failed {
        /// What went wrong and what to do.
        reason: String,
    },
}

/// What a node says of one model in `GET /models`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// The id clients use.
    pub id: ModelId,
    /// Where it stands.
    pub status: ModelStatus,
    /// What it can be asked for; empty while unknown (a hub model that was never fetched).
    pub capabilities: Vec<Capability>,
    /// The family as `config.json` names it (`qwen3_vl`), once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// Number of parameters, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<u64>,
    /// Longest sequence in tokens, once loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<usize>,
    /// Names of the device threads that hold it (`cpu-0`, `cuda-dev-1`).
    pub devices: Vec<String>,
    /// Bytes of weights and KV cache on the devices.
    pub memory_used_bytes: u64,
    /// The generation of the last action on it.
    pub generation: u64,
    /// How long the last load took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_s: Option<f64>,
}

impl ModelReport {
    /// True when a request can be sent right now.
    pub fn is_loaded(&self) -> bool {
        self.status == ModelStatus::Loaded
    }
}
