//! Grouped-query attention over the paged cache, split over the ranks by heads.

use candle_core::{Result, Tensor};
use neuron_kernels::PagedBatch;

use super::linear::{ColumnParallelLinear, Rows};
use super::ranks::Ranks;
use crate::cache::kv_cache::LayerCache;
use crate::error::LoadError;
use crate::weights::Weights;

/// How many heads of each kind, and how wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key/value heads.
    pub kv: usize,
    /// D, the width of a head.
    pub dim: usize,
}

/// The query, key and value projections merged into one product.
#[derive(Debug)]
pub struct QkvLinear {
    merged: ColumnParallelLinear, // [(query + 2 kv) D, H]
    heads: Heads,
}

impl Heads {
    /// The heads of one rank. With more ranks than key/value heads, neighbouring ranks hold the same one.
    pub fn of_rank(&self, ranks: &Ranks) -> std::result::Result<Self, LoadError> {
        let query = ranks.share(self.query, "num_attention_heads")?.len();
        let kv = ranks.share_or_replica(self.kv, "num_key_value_heads")?.len();
        Ok(Self { query, kv, dim: self.dim })
    }
}

impl QkvLinear {
    /// `q_proj`, `k_proj` and `v_proj` under the weights' prefix.
    pub fn load(weights: &Weights, hidden: usize, heads: Heads, bias: bool, ranks: &Ranks) -> std::result::Result<Self, LoadError> {
        let query = ranks.share(heads.query, "num_attention_heads")?;
        let kv = ranks.share_or_replica(heads.kv, "num_key_value_heads")?;
        let rows = |name, count: usize, held: &std::ops::Range<usize>| Rows {
            name,
            out: count * heads.dim,
            range: held.start * heads.dim..held.end * heads.dim,
        };
        let rows = [rows("q_proj", heads.query, &query), rows("k_proj", heads.kv, &kv), rows("v_proj", heads.kv, &kv)];
        Ok(Self { merged: ColumnParallelLinear::load(weights, &rows, hidden, bias)?, heads: heads.of_rank(ranks)? })
    }

    /// `[T, H]` to queries `[T, heads, D]`, keys and values `[T, kv heads, D]`.
    pub fn forward(&self, x: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let Heads { query, kv, dim } = self.heads;
        let qkv = self.merged.forward(x)?;
        let tokens = qkv.dim(0)?;
        let part = |first: usize, heads: usize| qkv.narrow(1, first * dim, heads * dim)?.contiguous()?.reshape((tokens, heads, dim));
        Ok((part(0, query)?, part(query, kv)?, part(query + kv, kv)?))
    }
}

/// Puts this step's keys and values into the cache, then lets each query see its sequence up to itself. `q` is `[T, heads, D]`,
/// `k` and `v` `[T, kv heads, D]`; the result is `[T, heads * D]`.
pub fn paged_attention(q: &Tensor, k: &Tensor, v: &Tensor, cache: &LayerCache, paged: &PagedBatch) -> Result<Tensor> {
    let (_, _, dim) = q.dims3()?;
    neuron_kernels::write_kv(k, v, &cache.k, &cache.v, &paged.slots)?;
    let out = neuron_kernels::paged_attention(q, &cache.k, &cache.v, paged, (dim as f32).powf(-0.5))?;
    out.flatten_from(1)
}
