//! Which attention kernel suits a step, and how much of the chip it gets.

use candle_core::{DType, Result, Tensor, bail};

use super::{Gpu, Launch, suffix};
use crate::PagedTables;

/// As the kernels have them: tokens of a block of the cache, warps of a block of threads, tiles in the ring of a warp, blocks of the cache
/// that are worth a part of their own, query heads that may share a KV head, rows and keys of a tile.
const BLOCK: usize = 32;
const WARPS: usize = 4;
const RING: usize = 3;
const PART_BLOCKS: usize = 4;
const GROUP_MAX: usize = 16;
const ROWS: usize = 128;
const KEYS: usize = 64;

/// Head widths that the tiled kernels were built for; a narrower head is padded.
const PAGED_WIDTHS: [usize; 3] = [32, 64, 128];
const SEGMENT_WIDTHS: [usize; 3] = [32, 64, 80];
/// The widest head of the plain kernels, and their warps.
const PLAIN_WIDTH_MAX: usize = 256;
const PLAIN_WARPS: usize = 8;

/// Attention over a paged cache; `q` `[T, H, D]` to the same.
pub(crate) fn paged(gpu: &Gpu, q: &Tensor, caches: [&Tensor; 2], tables: &PagedTables, scale: f32) -> Result<Tensor> {
    let ((tokens, heads, width), (_, kv_heads, block, cache_width)) = (q.dims3()?, caches[0].dims4()?);
    let (sequences, table_width) = tables.block_tables.dims2()?;
    let fits = caches[0].dims() == caches[1].dims() && cache_width == width && kv_heads > 0 && heads % kv_heads == 0;
    if !fits || tables.query_starts.dims() != [sequences + 1] || tables.context_lens.dims() != [sequences] {
        bail!(
            "paged_attention: q {:?} does not fit caches {:?} and {:?} with tables of {sequences} sequences",
            q.dims(),
            caches[0].dims(),
            caches[1].dims()
        );
    }
    let suffix = suffix("paged_attention", q, &caches)?;
    let out = gpu.empty(q.dims(), q.dtype())?;
    let start = |name: String| {
        let launch = Launch::new(gpu, name).tensor(q)?.tensor(caches[0])?.tensor(caches[1])?.tensor(&tables.query_starts)?;
        Ok::<_, candle_core::Error>(launch.tensor(&tables.context_lens)?.tensor(&tables.block_tables)?.arg(table_width as u32))
    };
    let group = heads / kv_heads;
    let Some(built) = tiled(q.dtype(), width, &PAGED_WIDTHS).filter(|_| block == BLOCK && group <= GROUP_MAX) else {
        plain_fits(width)?;
        let launch = start(format!("plain_attention_{suffix}"))?.arg(sequences as u32).arg(heads as u32).arg(kv_heads as u32);
        let launch = launch.arg(block as u32).arg(width as u32).arg(scale).tensor(&out)?;
        launch.grid(tokens, heads, 1).block(32 * PLAIN_WARPS).go()?;
        return Ok(out);
    };
    // Sequences with one new token, then those with more; each kernel leaves the other's alone.
    let parts = parts(gpu, sequences * kv_heads, table_width).min(parts_max(built, group));
    let gathered = gpu.empty(if parts > 1 { sequences * kv_heads * parts * group * built } else { 1 }, DType::F32)?;
    let masses = gpu.empty(if parts > 1 { sequences * kv_heads * parts * group * 2 } else { 1 }, DType::F32)?;
    let launch = start(format!("paged_decode_{suffix}_{built}"))?.arg(heads as u32).arg(kv_heads as u32).arg(width as u32).arg(scale);
    let launch = launch.tensor(&gathered)?.tensor(&masses)?.tensor(&gpu.counters()?)?.tensor(&out)?;
    launch.grid(parts, kv_heads, sequences).block(32 * WARPS).shared(WARPS * RING * BLOCK * row_bytes(built)).go()?;
    if tables.query_len_max > 1 {
        let launch = start(format!("prefill_attention_{suffix}_{built}"))?.arg(sequences as u32).arg(heads as u32).arg(kv_heads as u32);
        let tiles = (tokens * group).div_ceil(ROWS) + sequences;
        let launch = launch.arg(width as u32).arg(scale).tensor(&out)?.grid(tiles * kv_heads, 1, 1).block(32 * WARPS);
        launch.shared((ROWS + 2 * KEYS) * row_bytes(built)).go()?;
    }
    Ok(out)
}

/// Attention inside segments that begin at `starts` `[S + 1]` u32; `q`, `k` and `v` are `[T, H, D]`.
pub(crate) fn segments(gpu: &Gpu, [q, k, v]: [&Tensor; 3], starts: &Tensor, scale: f32) -> Result<Tensor> {
    let ((tokens, heads, width), segments) = (q.dims3()?, starts.elem_count() - 1);
    let suffix = suffix("segment_attention", q, &[k, v])?;
    let out = gpu.empty(q.dims(), q.dtype())?;
    let start = |name: String| {
        let launch = Launch::new(gpu, name).tensor(q)?.tensor(k)?.tensor(v)?.tensor(starts)?.arg(segments as u32).arg(heads as u32);
        launch.arg(width as u32).arg(scale).tensor(&out)
    };
    match tiled(q.dtype(), width, &SEGMENT_WIDTHS) {
        Some(built) => {
            let tiles = tokens.div_ceil(ROWS) + segments;
            let launch = start(format!("segment_attention_{suffix}_{built}"))?.grid(tiles * heads, 1, 1).block(32 * WARPS);
            launch.shared((ROWS + 2 * KEYS) * row_bytes(built)).go()?;
        }
        None => {
            plain_fits(width)?;
            start(format!("plain_segment_attention_{suffix}"))?.grid(tokens, heads, 1).block(32 * PLAIN_WARPS).go()?;
        }
    }
    Ok(out)
}

/// The narrowest tiled kernel that a head fits into.
fn tiled(dtype: DType, width: usize, built: &[usize]) -> Option<usize> {
    let suits = matches!(dtype, DType::BF16 | DType::F16) && width.is_multiple_of(8);
    built.iter().copied().find(|&built| suits && width <= built)
}

fn plain_fits(width: usize) -> Result<()> {
    match width <= PLAIN_WIDTH_MAX {
        true => Ok(()),
        false => bail!("attention: a head of width {width}; on a GPU it can be at most {PLAIN_WIDTH_MAX}"),
    }
}

/// Bytes of a row of a tile: chunks of 16, one more where that keeps rows in different banks.
fn row_bytes(width: usize) -> usize {
    16 * (width / 8 + usize::from(!width.is_multiple_of(64)))
}

/// The block that adds the parts up keeps the maximum and the sum of each in the memory of its ring.
fn parts_max(built: usize, group: usize) -> usize {
    WARPS * RING * BLOCK * row_bytes(built) / (group * size_of::<[f32; 2]>())
}

/// Into how many parts a context is cut so that two blocks of threads run on every multiprocessor.
fn parts(gpu: &Gpu, pairs: usize, table_width: usize) -> usize {
    (2 * gpu.multiprocessors).div_ceil(pairs.max(1)).clamp(1, table_width.div_ceil(PART_BLOCKS).max(1))
}
