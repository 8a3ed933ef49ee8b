//! Tensor operations. Each has a CPU form, which is also the reference its GPU form is tested against.
//!
//! The CPU forms are batch-invariant bit for bit: the numbers of a row depend on that row and, in attention, on its context in
//! order; never on the rows beside it, on how a prompt was cut into chunks, on the blocks a token sits in, or on the number of
//! threads. Shapes in these pages: T tokens, H hidden size or heads, D head width, V vocabulary, E experts.

mod cpu;
mod op;
#[cfg(test)]
mod testing;

use std::sync::Arc;

pub use op::add_rms_norm::add_rms_norm;
pub use op::embedding::embedding;
pub use op::gelu::{gelu_erf, gelu_tanh};
pub use op::layer_norm::layer_norm;
pub use op::linear::linear;
pub use op::moe_experts::moe_experts;
pub use op::paged_attention::paged_attention;
pub use op::rms_norm::rms_norm;
pub use op::rotary::rotary;
pub use op::segment_attention::segment_attention;
pub use op::silu_mul::silu_mul;
pub use op::write_kv::write_kv;

/// The blocks of one sequence, in order, perhaps more of them than its context fills. Shared, as a step only reads it; whoever
/// appends does so through [`Arc::make_mut`].
pub type BlockTable = Arc<Vec<u32>>;

/// The shape of one step over a paged KV cache: T new tokens of S sequences laid end to end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
}
