//! Mixture of experts: a router picks k gated feed-forward blocks for each token and weighs their outputs.

use candle_core::{Result, Tensor};

use super::linear::Linear;
use super::ranks::Ranks;
use crate::error::LoadError;
use crate::weights::{Part, Weights};

/// The sizes of a mixture, and how its weights lie in the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoeConfig {
    /// E, experts in all.
    pub experts: usize,
    /// k, experts that each token visits.
    pub experts_per_token: usize,
    /// I, the width inside one expert.
    pub intermediate_size: usize,
    /// Whether the k chosen weights are scaled to sum to one.
    pub renormalise: bool,
    /// How the experts are stored.
    pub layout: ExpertLayout,
}

/// How a checkpoint stores its experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertLayout {
    /// `experts.e.{gate,up,down}_proj.weight`, each a linear layer's `[out, in]`.
    PerExpert,
    /// `experts.gate_up_proj` `[E, H, 2 I]` (gate first) and `experts.down_proj` `[E, I, H]`, used as x W: the transpose of a linear layer.
    Fused,
}

/// A router and this rank's columns of every expert.
#[derive(Debug)]
pub struct Moe {
    gate: Linear,    // [E, H]
    gate_up: Tensor, // [E, 2 I, H]
    down: Tensor,    // [E, H, I]
    experts_per_token: usize,
    renormalise: bool,
    ranks: Ranks,
}

impl Moe {
    /// `gate` and `experts` under the weights' prefix.
    pub fn load(weights: &Weights, hidden: usize, config: &MoeConfig, ranks: &Ranks) -> std::result::Result<Self, LoadError> {
        let experts = weights.pp("experts");
        let (gate_up, down) = match config.layout {
            ExpertLayout::PerExpert => per_expert(&experts, hidden, config, ranks)?,
            ExpertLayout::Fused => fused(&experts, hidden, config, ranks)?,
        };
        Ok(Self {
            gate: Linear::load(&weights.pp("gate"), config.experts, hidden, false)?,
            gate_up,
            down,
            experts_per_token: config.experts_per_token,
            renormalise: config.renormalise,
            ranks: ranks.clone(),
        })
    }

    /// `[T, H]` to `[T, H]`. Every rank routes for itself and finds the same.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let logits = self.gate.forward_f32(x)?; // [T, E]
        let (ids, weights) = neuron_kernels::moe_route(&logits, self.experts_per_token, self.renormalise)?; // [T, k] each
        let partial = neuron_kernels::moe_experts(x, &self.gate_up, &self.down, &ids, &weights)?;
        self.ranks.comm.all_reduce_sum(partial)
    }
}

fn per_expert(weights: &Weights, hidden: usize, config: &MoeConfig, ranks: &Ranks) -> std::result::Result<(Tensor, Tensor), LoadError> {
    let (experts, inner) = (config.experts, config.intermediate_size);
    let range = ranks.share(inner, "moe_intermediate_size")?;
    let rows = |e: usize, name: &str| Part::slice(format!("{e}.{name}.weight"), &[inner, hidden], 0, range.clone());
    let gate_up: Vec<_> = (0..experts).flat_map(|e| [rows(e, "gate_proj"), rows(e, "up_proj")]).collect();
    let columns = |e: usize| Part::slice(format!("{e}.down_proj.weight"), &[hidden, inner], 1, range.clone());
    let down: Vec<_> = (0..experts).map(columns).collect();
    let gate_up = weights.stack(&gate_up)?.reshape((experts, 2 * range.len(), hidden))?;
    let down = weights.stack(&down)?.reshape((experts, hidden, range.len()))?;
    Ok((gate_up, down))
}

fn fused(weights: &Weights, hidden: usize, config: &MoeConfig, ranks: &Ranks) -> std::result::Result<(Tensor, Tensor), LoadError> {
    let (experts, inner) = (config.experts, config.intermediate_size);
    let range = ranks.share(inner, "moe_intermediate_size")?;
    let half = |first: usize| {
        let columns = first + range.start..first + range.end;
        let part = weights.stack(&[Part::slice("gate_up_proj", &[experts, hidden, 2 * inner], 2, columns)])?; // [E, H, I]
        Ok::<_, LoadError>(part.transpose(1, 2)?)
    };
    let gate_up = Tensor::cat(&[half(0)?, half(inner)?], 1)?.contiguous()?;
    let down = weights.stack(&[Part::slice("down_proj", &[experts, inner, hidden], 1, range)])?; // [E, I, H]
    Ok((gate_up, down.transpose(1, 2)?.contiguous()?))
}
