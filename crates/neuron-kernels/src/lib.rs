//! Tensor operations. Each has a CPU form, which is also the reference its GPU form is tested against.

/// The shape of one step over a paged KV cache: T new tokens of S sequences laid end to end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PagedBatch {
    /// New tokens of each sequence, `[S]`.
    pub query_lens: Vec<usize>,
    /// Tokens of each sequence in the cache once this step has written its own, `[S]`.
    pub context_lens: Vec<usize>,
    /// The blocks of each sequence, in order, `[S][..]`.
    pub block_tables: Vec<Vec<u32>>,
    /// The slot (`block * block_size + offset`) of each new token, `[T]`.
    pub slots: Vec<u32>,
    /// Tokens per block.
    pub block_size: usize,
}
