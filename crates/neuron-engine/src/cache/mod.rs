//! The paged KV cache: who holds which block, and the memory itself.

pub mod block_manager;
pub mod kv_cache;
pub mod prefix;
