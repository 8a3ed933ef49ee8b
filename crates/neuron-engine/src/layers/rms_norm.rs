//! RMSNorm: x / rms(x) · w, the mean taken over the last dimension in f32.

use candle_core::{Result, Tensor};

use crate::error::LoadError;
use crate::weights::Weights;

/// One norm with its weight `[width]`.
#[derive(Debug)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// `weight` under the weights' prefix.
    pub fn load(weights: &Weights, width: usize, eps: f32) -> std::result::Result<Self, LoadError> {
        Ok(Self { weight: weights.vector(width, "weight")?, eps })
    }

    /// The weight, `[width]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// What is added to the mean square.
    pub fn eps(&self) -> f32 {
        self.eps
    }

    /// `[.., width]` to the same.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        neuron_kernels::rms_norm(x, &self.weight, self.eps)
    }

    /// The norm of `x + residual`, and the sum itself.
    pub fn forward_sum(&self, x: &Tensor, residual: &Tensor) -> Result<(Tensor, Tensor)> {
        neuron_kernels::add_rms_norm(x, residual, &self.weight, self.eps)
    }
}
