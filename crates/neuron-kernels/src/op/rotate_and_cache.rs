//! From the merged projection to queries ready for attention and keys and values in the cache.

use candle_core::{Result, Tensor, bail};

use super::rms_norm::rms_norm;
use super::rotary::rotary;
use super::write_kv::write_kv;
use crate::PagedBatch;
#[cfg(feature = "cuda")]
use crate::cuda::{Gpu, Launch, suffix};

/// What happens to queries and keys before they meet.
#[derive(Clone, Copy, Debug)]
pub struct QueriesAndKeys<'a> {
    /// The weights `[D]` of the norms over each query and each key head, and their epsilon.
    pub norms: Option<(&'a Tensor, &'a Tensor, f32)>,
    /// Cosines and sines of the step's angles, `[T, D/2]` f32.
    pub angles: (&'a Tensor, &'a Tensor),
}

/// Splits `qkv` `[T, (H + 2 Hkv) D]` into heads, normalises and rotates queries and keys, and puts keys and values into their slots of
/// the caches `[blocks, Hkv, BLOCK, D]`. Gives the queries, `[T, H, D]`.
///
/// # Errors
/// When the shapes do not fit together, a slot is outside the cache, or a type is not one that the single ops take.
pub fn rotate_and_cache(qkv: &Tensor, how: QueriesAndKeys, k_cache: &Tensor, v_cache: &Tensor, batch: &PagedBatch) -> Result<Tensor> {
    let (&[tokens, columns], &[_, kv_heads, _, width]) = (qkv.dims(), k_cache.dims()) else {
        bail!("rotate_and_cache: qkv must be [T, N] and the caches [blocks, Hkv, BLOCK, D], got {:?} and {:?}", qkv.dims(), k_cache.dims());
    };
    let heads = (columns / width.max(1)).saturating_sub(2 * kv_heads);
    if heads == 0 || (heads + 2 * kv_heads) * width != columns || k_cache.dims() != v_cache.dims() {
        bail!("rotate_and_cache: qkv {:?} does not fit caches {:?} and {:?}", qkv.dims(), k_cache.dims(), v_cache.dims());
    }
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(qkv.device())? {
        return on_gpu(&gpu, &qkv.contiguous()?, how, [heads, kv_heads], [k_cache, v_cache], batch);
    }
    let part = |first: usize, heads: usize| qkv.narrow(1, first * width, heads * width)?.contiguous()?.reshape((tokens, heads, width));
    let (q, k, v) = (part(0, heads)?, part(heads, kv_heads)?, part(heads + kv_heads, kv_heads)?);
    let (q, k) = match how.norms {
        Some((q_norm, k_norm, eps)) => (rms_norm(&q, q_norm, eps)?, rms_norm(&k, k_norm, eps)?),
        None => (q, k),
    };
    let (cos, sin) = how.angles;
    write_kv(&rotary(&k, cos, sin)?, &v, k_cache, v_cache, &batch.slots)?;
    rotary(&q, cos, sin)
}

#[cfg(feature = "cuda")]
fn on_gpu(gpu: &Gpu, qkv: &Tensor, how: QueriesAndKeys, heads: [usize; 2], caches: [&Tensor; 2], batch: &PagedBatch) -> Result<Tensor> {
    const THREADS: usize = 256;
    let tables = batch.tables()?;
    let ((tokens, _), (_, _, block, width)) = (qkv.dims2()?, caches[0].dims4()?);
    let (cos, sin) = how.angles;
    if width > 256 || width % 2 != 0 || cos.dims() != [tokens, width / 2] || tables.slots.dims() != [tokens] {
        bail!(
            "rotate_and_cache: {tokens} tokens of heads {width} wide do not fit angles {:?} or slots {:?}",
            cos.dims(),
            tables.slots.dims()
        );
    }
    let (q_norm, k_norm, eps) = how.norms.map_or((None, None, 0.0), |(q, k, eps)| (Some(q), Some(k), eps));
    let suffix = suffix("rotate_and_cache", qkv, &[caches[0], caches[1], q_norm.unwrap_or(qkv), k_norm.unwrap_or(qkv)])?;
    let q = gpu.empty((tokens, heads[0], width), qkv.dtype())?;
    let rows = tokens * (heads[0] + 2 * heads[1]);
    // Eight pairs a thread, where heads are whole groups of them.
    let lanes = width.is_multiple_of(16).then(|| (width / 16).next_power_of_two());
    let form = if lanes.is_some() { "" } else { "_any" };
    let launch = Launch::new(gpu, format!("rotate_and_cache{form}_{suffix}")).tensor(qkv)?.optional(q_norm)?.optional(k_norm)?.arg(eps);
    let launch = launch.floats(cos)?.floats(sin)?.tensor(&tables.slots)?.arg(tokens as u32).arg(heads[0] as u32).arg(heads[1] as u32);
    let launch = launch.arg(width as u32).arg(block as u32).tensor(&q)?.tensor(caches[0])?.tensor(caches[1])?;
    let launch = launch.grid((rows * lanes.unwrap_or(32)).div_ceil(THREADS), 1, 1).block(THREADS);
    match lanes {
        Some(lanes) => launch.arg(lanes as u32),
        None => launch,
    }
    .go()?;
    Ok(q)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bits, noise};

    #[test]
    fn it_is_the_single_ops_one_after_the_other() {
        for (tokens, heads, kv_heads, width, normed) in [(1, 2, 1, 8, true), (5, 4, 2, 16, true), (3, 3, 3, 6, false)] {
            let qkv = noise((tokens, (heads + 2 * kv_heads) * width), 1);
            let (q_norm, k_norm) = (noise(width, 2), noise(width, 3));
            let (cos, sin) = (noise((tokens, width / 2), 4), noise((tokens, width / 2), 5));
            let cache = || noise((2, kv_heads, 4, width), 6);
            let batch = PagedBatch { slots: (0..tokens as u32).map(|i| 6 - i).collect(), block_size: 4, ..PagedBatch::default() };
            let (k_cache, v_cache) = (cache(), cache());
            let norms = normed.then_some((&q_norm, &k_norm, 1e-6));
            let q = rotate_and_cache(&qkv, QueriesAndKeys { norms, angles: (&cos, &sin) }, &k_cache, &v_cache, &batch).unwrap();

            let split = qkv.reshape((tokens, heads + 2 * kv_heads, width)).unwrap();
            let part = |first, count| split.narrow(1, first, count).unwrap();
            let turned = |x: Tensor, norm: &Tensor| {
                let x = if normed { rms_norm(&x, norm, 1e-6).unwrap() } else { x };
                rotary(&x, &cos, &sin).unwrap()
            };
            assert_eq!(bits(&q), bits(&turned(part(0, heads), &q_norm)));
            let (k_wanted, v_wanted) = (cache(), cache());
            write_kv(&turned(part(heads, kv_heads), &k_norm), &part(heads + kv_heads, kv_heads), &k_wanted, &v_wanted, &batch.slots)
                .unwrap();
            assert_eq!((bits(&k_cache), bits(&v_cache)), (bits(&k_wanted), bits(&v_wanted)));
        }
    }

    #[test]
    fn a_projection_of_another_width_is_named() {
        let cache = noise((2, 2, 4, 8), 1);
        let angles = noise((1, 4), 2);
        let how = QueriesAndKeys { norms: None, angles: (&angles, &angles) };
        let error = rotate_and_cache(&noise((1, 33), 3), how, &cache, &cache, &PagedBatch::default()).unwrap_err().to_string();
        assert!(error.starts_with("rotate_and_cache: qkv [1, 33] does not fit caches [2, 2, 4, 8]"), "{error}");
    }
}
