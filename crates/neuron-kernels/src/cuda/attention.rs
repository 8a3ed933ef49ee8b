//! Which attention kernel suits a step, and how much of the chip it gets.

use candle_core::{DType, Result, Tensor, bail};

use super::{Gpu, Launch, suffix};
use crate::{PagedTables, QueriesAndKeys};

/// As the kernels have them: tokens of a block of the cache; warps of a block of threads and tiles in the ring of each, with turned queries and
/// with fresh ones; blocks of the cache that are worth a part of their own; query heads that may share a KV head.
const BLOCK: usize = 32;
const TURNED: Rings = Rings { warps: 2, tiles: 3 };
const FRESH: Rings = Rings { warps: 4, tiles: 4 };
const PART_BLOCKS: usize = 8;
const GROUP_MAX: usize = 16;
/// Warps of a block of the kernel for many queries, rows and keys of a tile.
const WARPS: usize = 4;
const ROWS: usize = 128;
const KEYS: usize = 64;
/// The same of the kernel for Hopper: threads, tiles in the ring of a block, keys of a tile. It has few large blocks of threads, which pay from
/// contexts of so many blocks of the cache on.
const HOPPER_THREADS: usize = 384;
const HOPPER_RING: usize = 4;
const HOPPER_KEYS: usize = 128;
const HOPPER_BLOCKS_MIN: usize = 8;

/// Head widths that the tiled kernels were built for; a narrower head is padded.
const PAGED_WIDTHS: [usize; 3] = [32, 64, 128];
const SEGMENT_WIDTHS: [usize; 3] = [32, 64, 80];
const HOPPER_WIDTHS: [usize; 2] = [64, 128];
/// The widest head of the plain kernels, and their warps.
const PLAIN_WIDTH_MAX: usize = 256;
const PLAIN_WARPS: usize = 8;

/// How a block of threads reads keys and values.
#[derive(Clone, Copy)]
struct Rings {
    warps: usize,
    /// In the ring of each warp.
    tiles: usize,
}

impl Rings {
    fn bytes(self, built: usize) -> usize {
        self.warps * self.tiles * BLOCK * row_bytes(built)
    }

    /// The block that adds the parts up keeps the maximum and the sum of each in the memory of its rings.
    fn parts_max(self, built: usize, group: usize) -> usize {
        self.bytes(built) / (group * size_of::<[f32; 2]>())
    }
}

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
    let decode =
        Decode { tables, caches, shape: [sequences, heads, kv_heads, width], built, scale, rings: TURNED, blocks: 2 * gpu.multiprocessors };
    decode.go(gpu, Launch::new(gpu, format!("paged_decode_{suffix}_{built}")).tensor(q)?, &out)?;
    if tables.query_len_max > 1 {
        let tiles = (tokens * group).div_ceil(ROWS) + sequences;
        let hopper = gpu.hopper && width == built && HOPPER_WIDTHS.contains(&width) && table_width >= HOPPER_BLOCKS_MIN;
        let kind = if hopper { "hopper" } else { "prefill" };
        let launch = start(format!("{kind}_attention_{suffix}_{built}"))?.arg(sequences as u32).arg(heads as u32).arg(kv_heads as u32);
        let launch = launch.grid(tiles * kv_heads, 1, 1);
        if hopper {
            let launch = launch.arg(scale).tensor(&out)?.block(HOPPER_THREADS);
            launch.shared((ROWS + HOPPER_RING * HOPPER_KEYS) * row_bytes(built)).go()?;
        } else {
            let launch = launch.arg(width as u32).arg(scale).tensor(&out)?.block(32 * WARPS);
            launch.shared((ROWS + 2 * KEYS) * row_bytes(built)).go()?;
        }
    }
    Ok(out)
}

/// The same from the merged projection `qkv` `[T, (H + 2 Hkv) D]` on, which goes into the caches, too; `None` where there is no kernel for it.
pub(crate) fn fresh(
    gpu: &Gpu,
    qkv: &Tensor,
    how: QueriesAndKeys,
    caches: [&Tensor; 2],
    tables: &PagedTables,
    scale: f32,
) -> Result<Option<Tensor>> {
    let (Ok((tokens, columns)), Ok((_, kv_heads, block, width))) = (qkv.dims2(), caches[0].dims4()) else { return Ok(None) };
    let (heads, sequences) = ((columns / width.max(1)).saturating_sub(2 * kv_heads), tables.context_lens.elem_count());
    let fits =
        (heads + 2 * kv_heads) * width == columns && heads > 0 && heads.is_multiple_of(kv_heads) && caches[1].dims() == caches[0].dims();
    let one_each =
        tables.query_len_max == 1 && sequences == tokens && tables.slots.dims() == [tokens] && tables.query_starts.dims() == [tokens + 1];
    let (cosines, sines) = how.angles;
    let angles = [cosines, sines].iter().all(|angles| angles.dims() == [tokens, width / 2]);
    let suits = block == BLOCK && width.is_multiple_of(16) && fits && heads / kv_heads <= GROUP_MAX && one_each && angles;
    // Its deep rings hide how long a single sequence waits for memory. With more sequences than that, they wait beside each other.
    let few = sequences * kv_heads <= gpu.multiprocessors;
    let Some(built) = tiled(qkv.dtype(), width, &PAGED_WIDTHS).filter(|_| suits && few) else { return Ok(None) };
    let (q_norm, k_norm, eps) = how.norms.map_or((None, None, 0.0), |(q, k, eps)| (Some(q), Some(k), eps));
    let suffix = suffix("attend", qkv, &[caches[0], caches[1], q_norm.unwrap_or(qkv), k_norm.unwrap_or(qkv)])?;
    let out = gpu.empty((tokens, heads, width), qkv.dtype())?;
    let launch = Launch::new(gpu, format!("fresh_decode_{suffix}_{built}")).tensor(qkv)?.optional(q_norm)?.optional(k_norm)?.arg(eps);
    let launch = launch.floats(cosines)?.floats(sines)?.tensor(&tables.slots)?;
    let shape = [sequences, heads, kv_heads, width];
    Decode { tables, caches, shape, built, scale, rings: FRESH, blocks: gpu.multiprocessors }.go(gpu, launch, &out)?;
    Ok(Some(out))
}

/// What both kernels for one new token a sequence share.
struct Decode<'a> {
    tables: &'a PagedTables,
    caches: [&'a Tensor; 2],
    /// Sequences, query heads, KV heads, their width.
    shape: [usize; 4],
    /// The width that the kernel was built for.
    built: usize,
    scale: f32,
    rings: Rings,
    /// Blocks of threads that run at a time.
    blocks: usize,
}

impl Decode<'_> {
    /// Completes a launch that has its queries.
    fn go(self, gpu: &Gpu, launch: Launch, out: &Tensor) -> Result<()> {
        let Self { tables, caches, shape: [sequences, heads, kv_heads, width], built, scale, rings, blocks } = self;
        let (table_width, group) = (tables.block_tables.dim(1)?, heads / kv_heads);
        let parts = parts(blocks, sequences * kv_heads, table_width).min(rings.parts_max(built, group));
        let gathered = gpu.empty(if parts > 1 { sequences * kv_heads * parts * group * built } else { 1 }, DType::F32)?;
        let masses = gpu.empty(if parts > 1 { sequences * kv_heads * parts * group * 2 } else { 1 }, DType::F32)?;
        let launch = launch.tensor(caches[0])?.tensor(caches[1])?.tensor(&tables.query_starts)?.tensor(&tables.context_lens)?;
        let launch = launch.tensor(&tables.block_tables)?.arg(table_width as u32).arg(heads as u32).arg(kv_heads as u32).arg(width as u32);
        let launch = launch.arg(scale).tensor(&gathered)?.tensor(&masses)?.tensor(&gpu.counters()?)?.tensor(out)?;
        launch.grid(parts, kv_heads, sequences).block(32 * rings.warps).shared(rings.bytes(built)).go()
    }
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

/// Into how many parts a context is cut so that `blocks` of threads have something to do.
fn parts(blocks: usize, pairs: usize, table_width: usize) -> usize {
    blocks.div_ceil(pairs.max(1)).clamp(1, table_width.div_ceil(PART_BLOCKS).max(1))
}
