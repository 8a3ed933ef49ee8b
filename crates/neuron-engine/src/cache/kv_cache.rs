//! The memory of the KV cache: one pair of tensors per layer, allocated once when the model is loaded.

use candle_core::{DType, Device, Result, Tensor};

/// Tokens per block. 32 keeps the tables short and wastes at most 31 slots per sequence.
pub const BLOCK_SIZE: usize = 32;

/// What a model needs of its cache, per rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSpec {
    /// Decoder layers.
    pub layers: usize,
    /// Key/value heads of this rank.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Element type.
    pub dtype: DType,
}

impl CacheSpec {
    /// Bytes of one block over all layers, keys and values.
    pub fn block_bytes(&self) -> usize {
        2 * self.layers * self.kv_heads * BLOCK_SIZE * self.head_dim * self.dtype.size_in_bytes()
    }
}

/// Keys and values of one layer: `[blocks, kv_heads, BLOCK_SIZE, head_dim]` each.
#[derive(Debug)]
pub struct LayerCache {
    /// Keys, after rotary.
    pub k: Tensor,
    /// Values.
    pub v: Tensor,
}

/// The cache of all layers.
#[derive(Debug)]
pub struct LayerCaches {
    /// In layer order.
    pub layers: Vec<LayerCache>,
}

impl LayerCaches {
    /// Allocates `blocks` blocks per layer, zeroed so that no stale number is ever read.
    pub fn new(spec: &CacheSpec, blocks: usize, device: &Device) -> Result<Self> {
        let shape = (blocks, spec.kv_heads, BLOCK_SIZE, spec.head_dim);
        let layer = |_| Ok(LayerCache { k: Tensor::zeros(shape, spec.dtype, device)?, v: Tensor::zeros(shape, spec.dtype, device)? });
        Ok(Self { layers: (0..spec.layers).map(layer).collect::<Result<_>>()? })
    }
}
