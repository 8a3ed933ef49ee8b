//! Attention from the merged projection on.

use super::paged_attention::paged_attention;
use super::rotate_and_cache::{QueriesAndKeys, rotate_and_cache};
use crate::PagedBatch;
#[cfg(feature = "cuda")]
use crate::cuda::{Gpu, attention};
use candle_core::{Result, Tensor};

/// [`rotate_and_cache`] of `qkv` `[T, (H + 2 Hkv) D]`, then [`paged_attention`] of its queries: `[T, H, D]`. On a GPU one kernel does both
/// where every sequence has one new token.
///
/// # Errors
/// As those two.
pub fn attend(qkv: &Tensor, how: QueriesAndKeys, k_cache: &Tensor, v_cache: &Tensor, batch: &PagedBatch, scale: f32) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(qkv.device())?
        && let Some(out) = attention::fresh(&gpu, &qkv.contiguous()?, how, [k_cache, v_cache], batch.tables()?, scale)?
    {
        return Ok(out);
    }
    let q = rotate_and_cache(qkv, how, k_cache, v_cache, batch)?;
    paged_attention(&q, k_cache, v_cache, batch, scale)
}
