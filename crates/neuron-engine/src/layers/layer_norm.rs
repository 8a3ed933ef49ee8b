//! LayerNorm: (x - mean) / deviation · w + b over the last dimension.

use candle_core::{Result, Tensor};

use crate::error::LoadError;
use crate::weights::Weights;

/// One norm with its weight and bias, `[width]` each.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    /// `weight` and `bias` under the weights' prefix.
    pub fn load(weights: &Weights, width: usize, eps: f32) -> std::result::Result<Self, LoadError> {
        Ok(Self { weight: weights.vector(width, "weight")?, bias: weights.vector(width, "bias")?, eps })
    }

    /// `[.., width]` to the same.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        neuron_kernels::layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}
