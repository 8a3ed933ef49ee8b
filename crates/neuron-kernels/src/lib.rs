//! Tensor operations. Each has a CPU form, which is also the reference its GPU form is tested against.
//!
//! The CPU forms are batch-invariant bit for bit: the numbers of a row depend on that row and, in attention, on its context in
//! order; never on the rows beside it, on how a prompt was cut into chunks, on the blocks a token sits in, or on the number of
//! threads. Shapes in these pages: T tokens, H hidden size or heads, D head width, V vocabulary, E experts.

use candle_core::{Device, Result, Tensor};

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
pub mod device;
pub mod nccl;
mod op;
pub mod sampling;
mod staging;
mod steps;
#[cfg(test)]
mod testing;

use std::sync::Arc;

pub use op::add_rms_norm::add_rms_norm;
pub use op::attend::attend;
pub use op::embedding::embedding;
pub use op::gelu::{gelu_erf, gelu_tanh};
pub use op::interleave::interleave;
pub use op::layer_norm::layer_norm;
pub use op::linear::{gated_linear, linear, linear_f32};
pub use op::moe_experts::moe_experts;
pub use op::moe_route::moe_route;
pub use op::norm_linear::{PreNorm, norm_gated_linear, norm_linear};
pub use op::paged_attention::paged_attention;
pub use op::resolve_ids::{DRAWN, resolve_ids};
pub use op::rms_norm::rms_norm;
pub use op::rotary::{rotary, rotary_table};
pub use op::rotate_and_cache::{QueriesAndKeys, rotate_and_cache};
pub use op::segment_attention::segment_attention;
pub use op::silu_mul::silu_mul;
pub use op::write_kv::write_kv;
pub use staging::{Staged, Staging};
pub use steps::{Delivery, Inbox, Outbox, StepGraphs};

/// The blocks of one sequence, in order, perhaps more of them than its context fills. Shared, as a step only reads it; whoever
/// appends does so through [`Arc::make_mut`].
pub type BlockTable = Arc<Vec<u32>>;

/// The shape of one step over a paged KV cache: T new tokens of S sequences laid end to end.
#[derive(Clone, Debug, Default)]
pub struct PagedBatch {
    /// New tokens of each sequence, `[S]`.
    pub query_lens: Vec<usize>,
    /// Tokens of each sequence in the cache once this step has written its own, `[S]`.
    pub context_lens: Vec<usize>,
    /// The blocks of each sequence, `[S][..]`.
    pub block_tables: Vec<BlockTable>,
    /// The slot (`block * block_size + offset`) of each new token, `[T]`.
    pub slots: Vec<u32>,
    /// Tokens per block.
    pub block_size: usize,
    /// The same where a GPU can read it; needed only there.
    pub tables: Option<PagedTables>,
}

/// A [`PagedBatch`] in the memory of a GPU, all u32. Kernels read their sizes from here, so that a captured step can run again with other
/// numbers. Rows that only fill up a captured step have a context of 0 and slots of [`u32::MAX`].
#[derive(Clone, Debug)]
pub struct PagedTables {
    /// `[T]`
    pub slots: Tensor,
    /// Where the tokens of each sequence begin, and the end: `[S + 1]`.
    pub query_starts: Tensor,
    /// `[S]`
    pub context_lens: Tensor,
    /// `[S, W]`, as wide as the longest needs or wider.
    pub block_tables: Tensor,
    /// The most new tokens of one sequence.
    pub query_len_max: usize,
}

impl PagedTables {
    /// The tables of a batch, as they are.
    ///
    /// # Errors
    /// When the device has no memory for them.
    pub fn upload(batch: &PagedBatch, device: &Device) -> Result<Self> {
        let PagedBatch { query_lens, context_lens, block_tables, slots, .. } = batch;
        let width = block_tables.iter().map(|table| table.len()).max().unwrap_or(0).max(1);
        let rows: Vec<u32> = block_tables.iter().flat_map(|table| (0..width).map(|i| table.get(i).copied().unwrap_or(0))).collect();
        let mut starts = vec![0];
        starts.extend(query_lens.iter().scan(0, |end, len| {
            *end += *len as u32;
            Some(*end)
        }));
        let contexts: Vec<u32> = context_lens.iter().map(|len| *len as u32).collect();
        Ok(Self {
            slots: Tensor::new(slots.as_slice(), device)?,
            query_starts: Tensor::new(starts, device)?,
            context_lens: Tensor::new(contexts, device)?,
            block_tables: Tensor::from_vec(rows, (block_tables.len(), width), device)?,
            query_len_max: query_lens.iter().copied().max().unwrap_or(0),
        })
    }
}

#[cfg(feature = "cuda")]
impl PagedBatch {
    /// The tables for a GPU.
    pub(crate) fn tables(&self) -> Result<&PagedTables> {
        match &self.tables {
            Some(tables) => Ok(tables),
            None => candle_core::bail!("this batch is not on the GPU: its tables are absent"),
        }
    }
}
