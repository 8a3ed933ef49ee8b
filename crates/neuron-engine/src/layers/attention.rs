//! Grouped-query attention over the paged cache, split over the ranks by heads.

use candle_core::{Result, Tensor};
use neuron_kernels::{PagedBatch, PreNorm, QueriesAndKeys};

use super::linear::{ColumnParallelLinear, Rows};
use super::ranks::Ranks;
use super::rms_norm::RmsNorm;
use super::rotary::RotaryTable;
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
        Ok(Self { merged: ColumnParallelLinear::load(weights, &rows, hidden, bias)? })
    }

    /// The normed `[T, H]` to queries, keys and values side by side, `[T, (heads + 2 kv heads) D]`; and what was normed.
    pub fn forward(&self, x: PreNorm) -> Result<(Tensor, Tensor)> {
        self.merged.forward_normed(x)
    }
}

/// Normalises and rotates queries and keys, puts keys and values into the cache, then lets each query see its sequence up to itself.
/// `qkv` is `[T, (heads + 2 kv heads) D]`, `norms` are those of queries and keys; the result is `[T, heads * D]`.
pub fn paged_attention(
    qkv: &Tensor,
    norms: Option<&(RmsNorm, RmsNorm)>,
    rotary: &RotaryTable,
    cache: &LayerCache,
    paged: &PagedBatch,
) -> Result<Tensor> {
    let norms = norms.map(|(q_norm, k_norm)| (q_norm.weight(), k_norm.weight(), q_norm.eps()));
    let how = QueriesAndKeys { norms, angles: (rotary.cos(), rotary.sin()) };
    let scale = (cache.k.dim(3)? as f32).powf(-0.5);
    neuron_kernels::attend(qkv, how, &cache.k, &cache.v, paged, scale)?.flatten_from(1) // [T, heads, D], flattened
}
