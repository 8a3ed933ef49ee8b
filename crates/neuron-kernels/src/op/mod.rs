//! One op per file: its function, its candle op, its plain form, and the test that holds them together.

pub(crate) mod add_rms_norm;
pub(crate) mod attend;
pub(crate) mod embedding;
pub(crate) mod gelu;
pub(crate) mod interleave;
pub(crate) mod layer_norm;
pub(crate) mod linear;
pub(crate) mod moe_experts;
pub(crate) mod moe_route;
pub(crate) mod norm_linear;
pub(crate) mod paged_attention;
pub(crate) mod resolve_ids;
pub(crate) mod rms_norm;
pub(crate) mod rotary;
pub(crate) mod rotate_and_cache;
pub(crate) mod segment_attention;
pub(crate) mod silu_mul;
pub(crate) mod write_kv;
