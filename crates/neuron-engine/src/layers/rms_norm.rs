//! RMSNorm: x / rms(x) · w, the mean taken over the last dimension in f32.

use candle_core::Tensor;
use neuron_kernels::PreNorm;

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
    pub fn load(weights: &Weights, width: usize, eps: f32) -> Result<Self, LoadError> {
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

    /// The norm over a residual stream that `last` joins first.
    pub fn over<'a>(&'a self, stream: &'a Tensor, last: Option<&'a Tensor>) -> PreNorm<'a> {
        PreNorm { stream, last, weight: &self.weight, eps: self.eps }
    }
}
