//! `x · wᵀ` for rows that lie along the inner dimension, as activations and checkpoint weights do.
//!
//! The product of one row with one output is eight running sums, one a lane, over the inner dimension from its start to its end,
//! then the tree of [`Lanes::sum`]. Nothing else decides the result: the few-rows form below and the packed form agree bit for
//! bit, however the work is cut.

use super::PARALLEL_WORK_MIN;
use super::element::Element;
use super::lanes::{Kernel, LANES, Lanes, dispatch};
use super::many_rows::{ManyRows, PANEL_OUTPUTS, TILE_OUTPUTS, TILE_ROWS};
use super::pack::Packed;
use rayon::prelude::*;
use std::ops::Range;

/// Up to this many rows the weights are read once, where they lie.
const FEW_ROWS: usize = 4;
/// From this many rows on, tasks may take rows instead of outputs, and need no block of their own ..
const ROWS_TO_CUT: usize = 64;
/// .. if the weights, which every task then reads, are no more than this.
const WEIGHTS_TO_REREAD: usize = 1 << 21;

/// The sizes of a product: `x` is `[rows, k]`, `w` is `[outputs, k]`, the result `[rows, outputs]`.
#[derive(Clone, Copy)]
pub(crate) struct Dims {
    pub(crate) rows: usize,
    pub(crate) outputs: usize,
    pub(crate) k: usize,
}

/// Writes `x · wᵀ` to `out`.
pub(crate) fn matmul_nt<T: Element>(x: &[f32], w: &[T], dims: Dims, out: &mut [f32]) {
    let Dims { rows, outputs, k } = dims;
    if rows == 0 || outputs == 0 {
        return;
    }
    if k == 0 {
        out.fill(0.0);
        return;
    }
    let parallel = rows * outputs * k >= PARALLEL_WORK_MIN && rayon::current_num_threads() > 1;
    if rows <= FEW_ROWS {
        by_outputs(rows, outputs, parallel, LANES, usize::MAX, out, |range, out| {
            dispatch(FewRows { x, w: &w[range.start * k..range.end * k], rows, k, out });
        });
        return;
    }
    let x = &Packed::new(x, rows, k, parallel);
    if parallel && rows >= ROWS_TO_CUT && w.len() <= WEIGHTS_TO_REREAD {
        let chunk = rows.div_ceil(2 * rayon::current_num_threads()).next_multiple_of(TILE_ROWS).clamp(4 * TILE_ROWS, ROWS_TO_CUT);
        out.par_chunks_mut(chunk * outputs).enumerate().for_each(|(i, out)| {
            dispatch(ManyRows { x, first: i * chunk / TILE_ROWS, w, rows: out.len() / outputs, k, out });
        });
    } else {
        by_outputs(rows, outputs, parallel, TILE_OUTPUTS, PANEL_OUTPUTS, out, |range, out| {
            dispatch(ManyRows { x, first: 0, w: &w[range.start * k..range.end * k], rows, k, out });
        });
    }
}

/// Cuts the outputs into a few tasks per thread, each a multiple of `unit` and at most `max`, unless the work is not worth it.
fn by_outputs(
    rows: usize,
    outputs: usize,
    parallel: bool,
    unit: usize,
    max: usize,
    out: &mut [f32],
    compute: impl Fn(Range<usize>, &mut [f32]) + Sync,
) {
    if !parallel {
        return compute(0..outputs, out);
    }
    let chunk = outputs.div_ceil(4 * rayon::current_num_threads()).next_multiple_of(unit).min(max);
    let task = |(i, out): (usize, &mut [f32])| compute(i * chunk..i * chunk + out.len() / rows, out);
    if rows == 1 {
        return out.par_chunks_mut(chunk).enumerate().for_each(task);
    }
    // Each task fills a block of its own, and the blocks are then laid side by side.
    let mut blocks = vec![0.0; rows * outputs];
    blocks.par_chunks_mut(rows * chunk).enumerate().for_each(task);
    out.par_chunks_mut(outputs).with_min_len(16).enumerate().for_each(|(row, out)| {
        for (block, out) in blocks.chunks(rows * chunk).zip(out.chunks_mut(chunk)) {
            out.copy_from_slice(&block[row * out.len()..][..out.len()]);
        }
    });
}

/// The products of `R` rows with `N` outputs.
// Vectors are moved by plain loops: `map` and `from_fn` over arrays of them are not always unrolled in place.
#[inline(always)]
pub(crate) fn dots<L: Lanes, T: Element, const R: usize, const N: usize>(lanes: L, x: [&[f32]; R], w: [&[T]; N]) -> [[f32; N]; R] {
    let k = x[0].len();
    let whole = k / LANES;
    let xs: [&[[f32; LANES]]; R] = std::array::from_fn(|r| &x[r].as_chunks().0[..whole]);
    let ws: [&[[T; LANES]]; N] = std::array::from_fn(|n| &w[n].as_chunks().0[..whole]);
    let mut sums = [[lanes.splat(0.0); N]; R];
    for i in 0..whole {
        // The fewer operands are held, the more streamed: one register too many and the sums spill.
        if N < R {
            let mut held = [lanes.splat(0.0); N];
            for n in 0..N {
                held[n] = T::load(lanes, &ws[n][i]);
            }
            for r in 0..R {
                let x = lanes.load(&xs[r][i]);
                for n in 0..N {
                    sums[r][n] = lanes.mul_add(x, held[n], sums[r][n]);
                }
            }
        } else {
            let mut held = [lanes.splat(0.0); R];
            for r in 0..R {
                held[r] = lanes.load(&xs[r][i]);
            }
            for n in 0..N {
                let w = T::load(lanes, &ws[n][i]);
                for r in 0..R {
                    sums[r][n] = lanes.mul_add(held[r], w, sums[r][n]);
                }
            }
        }
    }
    if whole * LANES < k {
        for n in 0..N {
            let w = T::load_part(lanes, &w[n][whole * LANES..k]);
            for r in 0..R {
                let x = f32::load_part(lanes, &x[r][whole * LANES..]);
                sums[r][n] = lanes.mul_add(x, w, sums[r][n]);
            }
        }
    }
    totals(lanes, &sums)
}

/// The sum of each vector of a tile.
#[inline(always)]
pub(crate) fn totals<L: Lanes, const R: usize, const N: usize>(lanes: L, sums: &[[L::V; N]; R]) -> [[f32; N]; R] {
    let mut out = [[0.0; N]; R];
    for first in (0..R * N).step_by(4) {
        let at = |i: usize| if first + i < R * N { sums[(first + i) / N][(first + i) % N] } else { lanes.splat(0.0) };
        let four = lanes.sums([at(0), at(1), at(2), at(3)]);
        for i in first..(R * N).min(first + 4) {
            out[i / N][i % N] = four[i - first];
        }
    }
    out
}

/// Up to four rows against weights as they lie.
struct FewRows<'a, T> {
    x: &'a [f32],
    w: &'a [T],
    rows: usize,
    k: usize,
    out: &'a mut [f32],
}

impl<T: Element> Kernel for FewRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        match self.rows {
            // Few streams, so that memory is read nearly in order; halves widen slower than they arrive, so they need more.
            1 if size_of::<T>() == 4 => self.stream::<L, 1, 2>(lanes),
            1 => self.stream::<L, 1, 4>(lanes),
            2 => self.stream::<L, 2, 6>(lanes),
            3 => self.stream::<L, 3, 4>(lanes),
            _ => self.stream::<L, 4, 3>(lanes),
        }
    }
}

impl<T: Element> FewRows<'_, T> {
    #[inline(always)]
    fn stream<L: Lanes, const R: usize, const N: usize>(self, lanes: L) {
        let k = self.k;
        let outputs = self.out.len() / R;
        let x: [&[f32]; R] = std::array::from_fn(|r| &self.x[r * k..(r + 1) * k]);
        let row = |n: usize| &self.w[n * k..(n + 1) * k];
        let mut n = 0;
        while n + N <= outputs {
            let tile = dots::<L, T, R, N>(lanes, x, std::array::from_fn(|i| row(n + i)));
            for (r, tile) in tile.iter().enumerate() {
                self.out[r * outputs + n..][..N].copy_from_slice(tile);
            }
            n += N;
        }
        for n in n..outputs {
            let tile = dots::<L, T, R, 1>(lanes, x, [row(n)]);
            for (r, tile) in tile.iter().enumerate() {
                self.out[r * outputs + n] = tile[0];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    fn noise(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state as f32 / u32::MAX as f32) * 2.0 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    fn product<T: Element>(x: &[f32], w: &[T], dims: Dims) -> Vec<f32> {
        let mut out = vec![f32::NAN; dims.rows * dims.outputs];
        matmul_nt(x, w, dims, &mut out);
        out
    }

    fn one_row_at_a_time<T: Element>(x: &[f32], w: &[T], dims: Dims) -> Vec<f32> {
        let dims_of_one = Dims { rows: 1, ..dims };
        x.chunks(dims.k).flat_map(|row| product(row, w, dims_of_one)).collect()
    }

    fn check<T: Element>(dims: Dims) {
        let Dims { rows, outputs, k } = dims;
        let x = noise(rows * k, 1);
        let w: Vec<T> = noise(outputs * k, 2).into_iter().map(T::narrow).collect();
        let got = product(&x, &w, dims);
        assert_eq!(got, one_row_at_a_time(&x, &w, dims), "{rows} rows differ from one, [{outputs}, {k}]");
        for (row, got) in got.chunks(outputs).enumerate() {
            for (output, got) in got.iter().enumerate() {
                let want: f64 = (0..k).map(|i| f64::from(x[row * k + i]) * f64::from(w[output * k + i].widen())).sum();
                assert!((f64::from(*got) - want).abs() <= 1e-6 * k as f64, "[{rows}, {outputs}, {k}]: {got} for {want}");
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_any_company_and_the_right_value() {
        let row_counts = [1, 2, 3, 4, 5, 7, 8, 13, 64, 67, 130];
        let shapes = [(1, 1), (1, 9), (3, 8), (5, 17), (49, 24), (97, 515), (50, 1030), (130, 1536)];
        for rows in row_counts {
            for (outputs, k) in shapes {
                let dims = Dims { rows, outputs, k };
                check::<f32>(dims);
                check::<bf16>(dims);
                check::<f16>(dims);
            }
        }
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        for rows in [1, 3, 70] {
            let dims = Dims { rows, outputs: 1001, k: 700 };
            let (x, w) = (noise(rows * 700, 3), noise(1001 * 700, 4));
            let with = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a small pool");
                pool.install(|| product(&x, &w, dims))
            };
            let one = with(1);
            for threads in [2, 3, 8] {
                assert_eq!(one, with(threads), "{threads} threads, {rows} rows");
            }
        }
    }

    #[test]
    fn empty_products_are_empty_or_zero() {
        assert!(product::<f32>(&[], &noise(6, 1), Dims { rows: 0, outputs: 2, k: 3 }).is_empty());
        assert!(product::<f32>(&noise(6, 1), &[], Dims { rows: 2, outputs: 0, k: 3 }).is_empty());
        assert_eq!(product::<f32>(&[], &[], Dims { rows: 2, outputs: 2, k: 0 }), [0.0; 4]);
    }
}
