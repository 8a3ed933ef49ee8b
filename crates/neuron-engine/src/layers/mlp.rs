//! The gated feed-forward block: down(silu(gate x) ⊙ up x).

use candle_core::{Result, Tensor};
use neuron_kernels::PreNorm;

use super::linear::{ColumnParallelLinear, RowParallelLinear, Rows};
use super::ranks::Ranks;
use crate::error::LoadError;
use crate::weights::Weights;

/// Each rank holds a part of the intermediate columns.
#[derive(Debug)]
pub struct GatedMlp {
    gate_up_proj: ColumnParallelLinear, // [2 I, H]
    down_proj: RowParallelLinear,       // [H, I]
}

impl GatedMlp {
    /// `gate_proj`, `up_proj` and `down_proj` under the weights' prefix.
    pub fn load(weights: &Weights, hidden: usize, intermediate: usize, bias: bool, ranks: &Ranks) -> std::result::Result<Self, LoadError> {
        let range = ranks.share(intermediate, "intermediate_size")?;
        let rows = ["gate_proj", "up_proj"].map(|name| Rows { name, out: intermediate, range: range.clone() });
        Ok(Self {
            gate_up_proj: ColumnParallelLinear::load(weights, &rows, hidden, bias)?,
            down_proj: RowParallelLinear::load(&weights.pp("down_proj"), hidden, intermediate, range, bias, ranks)?,
        })
    }

    /// The normed `[T, H]` to `[T, H]`; and what was normed.
    pub fn forward(&self, x: PreNorm) -> Result<(Tensor, Tensor)> {
        let (inner, x) = self.gate_up_proj.forward_gated(x)?;
        Ok((self.down_proj.forward(&inner)?, x))
    }
}
