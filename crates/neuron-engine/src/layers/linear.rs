//! Products with weight matrices, whole or split over the ranks.

use std::ops::Range;

use candle_core::{Result, Tensor};
use neuron_kernels::PreNorm;

use super::ranks::Ranks;
use crate::error::LoadError;
use crate::weights::{Part, Weights};

/// y = x Wᵀ + b with W `[out, in]`; the same on every rank.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

/// The rows of one named projection that this rank computes.
#[derive(Clone, Debug)]
pub struct Rows<'a> {
    /// The projection, under the weights' prefix (`q_proj`).
    pub name: &'a str,
    /// Rows of the whole projection.
    pub out: usize,
    /// The rows wanted.
    pub range: Range<usize>,
}

/// Each rank computes a part of the outputs and keeps it. Several projections of the same input are merged into one product.
#[derive(Debug)]
pub struct ColumnParallelLinear(Linear);

/// Each rank holds a part of the inputs; the sum over the ranks is the output.
#[derive(Debug)]
pub struct RowParallelLinear {
    partial: Linear,
    bias: Option<Tensor>,
    ranks: Ranks,
}

/// Logits over the whole vocabulary, each rank computing its part of it.
#[derive(Debug)]
pub struct LmHead {
    part: Linear,
    ranks: Ranks,
}

impl Linear {
    /// `weight` and, if asked for, `bias` under the weights' prefix.
    pub fn load(weights: &Weights, out: usize, input: usize, bias: bool) -> std::result::Result<Self, LoadError> {
        let weight = weights.get(&[out, input], "weight")?;
        let bias = if bias { Some(weights.vector(out, "bias")?) } else { None };
        Ok(Self { weight, bias })
    }

    /// A convolution whose stride is its kernel: a product over its flattened `window`, `[channels, ..]`.
    pub fn over_windows(weights: &Weights, out: usize, window: &[usize]) -> std::result::Result<Self, LoadError> {
        let shape: Vec<usize> = std::iter::once(out).chain(window.iter().copied()).collect();
        let weight = weights.get(&shape, "weight")?.reshape((out, window.iter().product::<usize>()))?;
        Ok(Self { weight, bias: Some(weights.vector(out, "bias")?) })
    }

    /// The rows of several projections on top of each other, so that one product computes them all.
    pub fn stacked(weights: &Weights, rows: &[Rows], input: usize, bias: bool) -> std::result::Result<Self, LoadError> {
        let part = |r: &Rows| Part::slice(format!("{}.weight", r.name), &[r.out, input], 0, r.range.clone());
        let weight = weights.stack(&rows.iter().map(part).collect::<Vec<_>>())?;
        let part = |r: &Rows| Part::slice(format!("{}.bias", r.name), &[r.out], 0, r.range.clone());
        let bias = if bias { Some(weights.stack_vectors(&rows.iter().map(part).collect::<Vec<_>>())?) } else { None };
        Ok(Self { weight, bias })
    }

    /// A product with a matrix already at hand, such as a tied embedding.
    pub fn from_weight(weight: Tensor) -> Self {
        Self { weight, bias: None }
    }

    /// `[T, in]` to `[T, out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        neuron_kernels::linear(x, &self.weight, self.bias.as_ref())
    }

    /// The normed `[T, in]` to `[T, out]`; and what was normed, `[T, in]`.
    pub fn forward_normed(&self, x: PreNorm) -> Result<(Tensor, Tensor)> {
        neuron_kernels::norm_linear(x, &self.weight, self.bias.as_ref())
    }

    /// The normed `[T, in]` to `[T, out / 2]`: silu of the first half of the outputs, times the second; and what was normed, `[T, in]`.
    pub fn forward_gated(&self, x: PreNorm) -> Result<(Tensor, Tensor)> {
        neuron_kernels::norm_gated_linear(x, &self.weight, self.bias.as_ref())
    }

    /// `[T, in]` to `[T, out]`, f32 whatever the type of `x`.
    pub fn forward_f32(&self, x: &Tensor) -> Result<Tensor> {
        neuron_kernels::linear_f32(x, &self.weight)
    }
}

impl<'a> Rows<'a> {
    /// All rows.
    pub fn all(name: &'a str, out: usize) -> Self {
        Self { name, out, range: 0..out }
    }
}

impl ColumnParallelLinear {
    /// This rank's `rows` of each projection.
    pub fn load(weights: &Weights, rows: &[Rows], input: usize, bias: bool) -> std::result::Result<Self, LoadError> {
        Ok(Self(Linear::stacked(weights, rows, input, bias)?))
    }

    /// The normed `[T, in]` to `[T, this rank's rows]`, projection after projection; and what was normed, `[T, in]`.
    pub fn forward_normed(&self, x: PreNorm) -> Result<(Tensor, Tensor)> {
        self.0.forward_normed(x)
    }

    /// The normed `[T, in]` to `[T, half of this rank's rows]`: silu of the first projection, times the second; and what was normed.
    pub fn forward_gated(&self, x: PreNorm) -> Result<(Tensor, Tensor)> {
        self.0.forward_gated(x)
    }
}

impl RowParallelLinear {
    /// `columns` are the inputs that this rank has, of `input` in all.
    pub fn load(
        weights: &Weights,
        out: usize,
        input: usize,
        columns: Range<usize>,
        bias: bool,
        ranks: &Ranks,
    ) -> std::result::Result<Self, LoadError> {
        let weight = weights.stack(&[Part::slice("weight", &[out, input], 1, columns)])?;
        let bias = if bias { Some(weights.vector(out, "bias")?) } else { None };
        Ok(Self { partial: Linear::from_weight(weight), bias, ranks: ranks.clone() })
    }

    /// `[T, this rank's inputs]` to `[T, out]`, the same on every rank. The bias joins once, after the sum.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let sum = self.ranks.comm.all_reduce_sum(self.partial.forward(x)?)?;
        match &self.bias {
            Some(bias) => sum.broadcast_add(bias),
            None => Ok(sum),
        }
    }
}

impl LmHead {
    /// A head with weights of its own.
    pub fn load(weights: &Weights, vocab: usize, hidden: usize, ranks: &Ranks) -> std::result::Result<Self, LoadError> {
        let range = ranks.share(vocab, "vocab_size")?;
        let weight = weights.stack(&[Part::slice("weight", &[vocab, hidden], 0, range)])?;
        Ok(Self { part: Linear::from_weight(weight), ranks: ranks.clone() })
    }

    /// The embedding `table` `[vocab, hidden]` used a second time; no copy is made.
    pub fn tied(table: &Tensor, ranks: &Ranks) -> std::result::Result<Self, LoadError> {
        let range = ranks.share(table.dim(0)?, "vocab_size")?;
        let weight = table.narrow(0, range.start, range.len())?;
        Ok(Self { part: Linear::from_weight(weight), ranks: ranks.clone() })
    }

    /// `[R, hidden]` to `[R, vocab]`, f32.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.ranks.comm.all_gather(self.part.forward_f32(x)?, 1)
    }
}
