//! The product of many rows: rows and weights packed in tiles, sums in registers, blocks sized for the caches.

use super::element::Element;
use super::lanes::{Kernel, LANES, Lanes};
use super::matmul::totals;
use super::pack::{BLOCK_VECTORS, PackTile, Packed, Step};
use std::cell::RefCell;
use std::ops::Range;

/// Rows and outputs of a tile: twelve sums, three weights and one activation fill sixteen registers.
pub(crate) const TILE_ROWS: usize = 4;
/// See [`TILE_ROWS`].
pub(crate) const TILE_OUTPUTS: usize = 3;
/// Outputs whose weights of one block, widened, fill a fifth of the second cache.
pub(crate) const PANEL_OUTPUTS: usize = 16 * TILE_OUTPUTS;
/// Row tiles done before the panel's weights are packed again; their sums fill another fifth.
const ROW_TILES: usize = 16;
/// Steps of row tiles that stay in the first cache while all weights of the panel pass by.
const NEAR_STEPS: usize = 128;

/// Packed rows against weights as they lie: `out` is `[rows, outputs]`, `w` is `[outputs, k]`.
pub(crate) struct ManyRows<'a, T> {
    pub(crate) x: &'a Packed<TILE_ROWS>,
    /// The tile of `x` that the first row of `out` belongs to.
    pub(crate) first: usize,
    pub(crate) w: &'a [T],
    pub(crate) rows: usize,
    pub(crate) k: usize,
    pub(crate) out: &'a mut [f32],
}

/// The sums of one tile, in registers.
type Sums<L> = [[<L as Lanes>::V; TILE_OUTPUTS]; TILE_ROWS];
/// The same in memory, between two blocks.
type Held = [[[f32; LANES]; TILE_OUTPUTS]; TILE_ROWS];

/// Memory that a thread keeps from one product to the next.
#[derive(Default)]
struct Scratch {
    weights: Vec<Step<TILE_OUTPUTS>>,
    sums: Vec<Held>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl<T: Element> Kernel for ManyRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let mut scratch = SCRATCH.take();
        scratch.weights.resize(PANEL_OUTPUTS / TILE_OUTPUTS * BLOCK_VECTORS, [[0.0; LANES]; TILE_OUTPUTS]);
        scratch.sums.resize(PANEL_OUTPUTS / TILE_OUTPUTS * ROW_TILES, [[[0.0; LANES]; TILE_OUTPUTS]; TILE_ROWS]);
        let outputs = self.out.len() / self.rows;
        let Self { x, first, w, rows, k, out } = self;
        let tiles = first..first + rows.div_ceil(TILE_ROWS);
        let mut to = Out { first, rows, outputs, data: out };
        for (i, w) in w.chunks(PANEL_OUTPUTS * k).enumerate() {
            panel(lanes, x, tiles.clone(), &Panel { w, k, first: i * PANEL_OUTPUTS }, &mut to, &mut scratch);
        }
        SCRATCH.set(scratch);
    }
}

/// The result, `[rows, outputs]`, of the rows from tile `first` on.
struct Out<'a> {
    first: usize,
    rows: usize,
    outputs: usize,
    data: &'a mut [f32],
}

/// Some of the weights, `[up to PANEL_OUTPUTS, k]`, from output `first` on.
struct Panel<'a, T> {
    w: &'a [T],
    k: usize,
    first: usize,
}

/// The outputs of one panel for some row tiles.
#[inline(always)]
fn panel<L: Lanes, T: Element>(
    lanes: L,
    x: &Packed<TILE_ROWS>,
    row_tiles: Range<usize>,
    panel: &Panel<'_, T>,
    out: &mut Out<'_>,
    scratch: &mut Scratch,
) {
    let vectors = panel.k.div_ceil(LANES);
    let tiles = (panel.w.len() / panel.k).div_ceil(TILE_OUTPUTS);
    for row in row_tiles.clone().step_by(ROW_TILES) {
        let rows = row..row_tiles.end.min(row + ROW_TILES);
        for start in (0..vectors).step_by(BLOCK_VECTORS) {
            let len = BLOCK_VECTORS.min(vectors - start);
            let weights = &mut scratch.weights[..tiles * len];
            // The weights of a single block stay packed for all rows.
            if vectors > BLOCK_VECTORS || row == row_tiles.start {
                pack(lanes, panel, start, weights);
            }
            let place = Place { start, last: start + len == vectors, first: panel.first };
            block(lanes, x, rows.clone(), weights, place, out, &mut scratch.sums);
        }
    }
}

/// Packs the block from vector `start` on, of all outputs of a panel.
#[inline(always)]
fn pack<L: Lanes, T: Element>(lanes: L, panel: &Panel<'_, T>, start: usize, tiles: &mut [Step<TILE_OUTPUTS>]) {
    let len = BLOCK_VECTORS.min(panel.k.div_ceil(LANES) - start);
    for (rows, steps) in panel.w.chunks(TILE_OUTPUTS * panel.k).zip(tiles.chunks_exact_mut(len)) {
        PackTile { rows, k: panel.k, start: start * LANES, steps }.run(lanes);
    }
}

/// Where a block lies: its first vector, whether it is the last along k, and its first output.
#[derive(Clone, Copy)]
struct Place {
    start: usize,
    last: bool,
    first: usize,
}

/// One block of some row tiles with all weights of a panel.
#[inline(always)]
fn block<L: Lanes>(
    lanes: L,
    x: &Packed<TILE_ROWS>,
    rows: Range<usize>,
    weights: &[Step<TILE_OUTPUTS>],
    place: Place,
    out: &mut Out<'_>,
    held: &mut [Held],
) {
    let len = x.tile(place.start, 0).len();
    let near = (NEAR_STEPS / len).max(1);
    let tiles = weights.len() / len;
    for row in rows.clone().step_by(near) {
        for (n, weights) in weights.chunks_exact(len).enumerate() {
            for m in row..rows.end.min(row + near) {
                let held = &mut held[(m - rows.start) * tiles + n];
                let sums = add_tile(lanes, x.tile(place.start, m), weights, (place.start > 0).then_some(&*held));
                if place.last {
                    finish(lanes, &sums, (m - out.first) * TILE_ROWS, place.first + n * TILE_OUTPUTS, out);
                } else {
                    hold(lanes, &sums, held);
                }
            }
        }
    }
}

/// The products of one block, added to the sums held from the blocks before.
// No `map` or `from_fn` over vectors here and below: not unrolled in place, they would move the sums out of the registers.
#[inline(always)]
fn add_tile<L: Lanes>(lanes: L, x: &[Step<TILE_ROWS>], w: &[Step<TILE_OUTPUTS>], held: Option<&Held>) -> Sums<L> {
    let mut sums = [[lanes.splat(0.0); TILE_OUTPUTS]; TILE_ROWS];
    if let Some(held) = held {
        for r in 0..TILE_ROWS {
            for n in 0..TILE_OUTPUTS {
                sums[r][n] = lanes.load(&held[r][n]);
            }
        }
    }
    for (x, w) in x.iter().zip(w) {
        let w = [lanes.load(&w[0]), lanes.load(&w[1]), lanes.load(&w[2])];
        for r in 0..TILE_ROWS {
            let x = lanes.load(&x[r]);
            for n in 0..TILE_OUTPUTS {
                sums[r][n] = lanes.mul_add(x, w[n], sums[r][n]);
            }
        }
    }
    sums
}

#[inline(always)]
fn hold<L: Lanes>(lanes: L, sums: &Sums<L>, held: &mut Held) {
    for r in 0..TILE_ROWS {
        for n in 0..TILE_OUTPUTS {
            held[r][n] = lanes.store(sums[r][n]);
        }
    }
}

/// Writes what of a finished tile lies inside the result.
#[inline(always)]
fn finish<L: Lanes>(lanes: L, sums: &Sums<L>, row: usize, output: usize, out: &mut Out<'_>) {
    let totals = totals(lanes, sums);
    let width = TILE_OUTPUTS.min(out.outputs - output);
    for (r, totals) in totals.iter().enumerate().take(out.rows - row) {
        out.data[(row + r) * out.outputs + output..][..width].copy_from_slice(&totals[..width]);
    }
}
