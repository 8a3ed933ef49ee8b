//! Architectures. One file each, one line in the registry.

pub mod bert;
pub mod config;
pub mod decoder;
pub mod llama;
pub mod pooling;
pub mod qwen3;
pub mod qwen3_moe;
pub mod qwen3_vl;
pub mod qwen3_vl_vision;
pub mod registry;
pub mod roberta;

use candle_core::{Result, Tensor};
use neuron_kernels::PagedBatch;

use crate::cache::kv_cache::{CacheSpec, LayerCaches};
use crate::image::{Grid, ImageFeatures};

/// A decoder that continues text.
pub trait CausalLm {
    /// What its KV cache looks like on this rank.
    fn cache_spec(&self) -> CacheSpec;
    /// Runs one step and returns the logits of the rows asked for: `[R, vocabulary]`, f32.
    fn forward(&self, input: &ModelInput, caches: &LayerCaches) -> Result<Tensor>;
}

/// A model that turns texts into vectors.
pub trait Encoder {
    /// One vector per segment: `[S, hidden]`, f32, pooled and normalised as the checkpoint says; or what its head makes of them, `[S, 1]`.
    /// `ids` and `types` (0 in the first text of a segment, 1 in the second) are `[T]` u32.
    fn encode(&self, ids: &Tensor, types: &Tensor, segment_lens: &[usize]) -> Result<Tensor>;
}

/// What an encoder reads at once: a text, or two of which the model knows where one ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncoderInput {
    /// The tokens.
    pub ids: Vec<u32>,
    /// How many of them are the first text's.
    pub first: usize,
}

impl EncoderInput {
    /// One text.
    pub fn text(ids: Vec<u32>) -> Self {
        Self { first: ids.len(), ids }
    }

    /// Which text each token belongs to.
    pub fn types(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.ids.len()).map(|place| u32::from(place >= self.first))
    }
}

/// The eyes of a model.
pub trait VisionTower {
    /// The features of some pictures. `pixels` are their patches, `[P, channels * frames * side * side]`, in merge order; `grids` says
    /// which belong to which.
    fn encode(&self, pixels: &Tensor, grids: &[Grid]) -> Result<ImageFeatures>;
}

/// One step's input: T tokens of several sequences laid end to end.
#[derive(Debug)]
pub struct ModelInput {
    /// Token ids, `[T]` u32.
    pub ids: Tensor,
    /// Rotary positions, `[3, T]` u32: time, height, width. Models with one axis read the first row.
    pub positions: Tensor,
    /// Where the step's keys and values go and what each sequence may look at.
    pub paged: PagedBatch,
    /// The rows that need logits, `[R]` u32; absent: all.
    pub logit_rows: Option<Tensor>,
    /// What the vision tower saw, where this step has image tokens.
    pub visual: Option<Visual>,
}

/// The N image tokens of one step, as the vision tower sees them.
#[derive(Clone, Debug)]
pub struct Visual {
    /// Their rows in the step, `[N]` u32.
    pub rows: Tensor,
    /// What stands in for their embeddings, `[N, hidden]`.
    pub features: Tensor,
    /// What is added to them after each of the first layers, `[N, hidden]` each.
    pub deepstack: Vec<Tensor>,
}
