//! Token embeddings.

use candle_core::{Result, Tensor};

use crate::error::LoadError;
use crate::weights::Weights;

/// A table `[vocab, hidden]`, whole on every rank: looking rows up costs nothing, and a tied head takes its part as a view.
#[derive(Debug)]
pub struct Embedding {
    table: Tensor,
}

impl Embedding {
    /// `weight` under the weights' prefix.
    pub fn load(weights: &Weights, vocab: usize, hidden: usize) -> std::result::Result<Self, LoadError> {
        Ok(Self { table: weights.get(&[vocab, hidden], "weight")? })
    }

    /// `[T]` u32 to `[T, hidden]`.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        neuron_kernels::embedding(ids, &self.table)
    }

    /// The table itself.
    pub fn table(&self) -> &Tensor {
        &self.table
    }
}
