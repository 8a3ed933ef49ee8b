//! What the CPU forms of the ops share.
//!
//! Everything here keeps one promise: the numbers of a row are a function of that row alone. Sums run in an order fixed by the
//! length of the row, never by how many rows travel together, by the shape of a tile, or by the number of threads.

use rayon::prelude::*;

pub(crate) mod attend;
pub(crate) mod attend_batch;
pub(crate) mod element;
pub(crate) mod lanes;
pub(crate) mod many_rows;
pub(crate) mod math;
pub(crate) mod matmul;
pub(crate) mod normalize;
pub(crate) mod pack;
pub(crate) mod view;

/// Fewer scalar operations than this are done where they are: waking another thread costs more than it saves.
pub(crate) const PARALLEL_WORK_MIN: usize = 1 << 19;

/// Fills `out` row by row, on several threads if the whole is worth it.
///
/// `work` is the scalar operations of one row; `fill` gets the index of the row and the row.
pub(crate) fn fill_rows(out: &mut [f32], width: usize, work: usize, fill: impl Fn(usize, &mut [f32]) + Sync) {
    let width = width.max(1);
    if out.len() / width * work < PARALLEL_WORK_MIN {
        out.chunks_exact_mut(width).enumerate().for_each(|(i, row)| fill(i, row));
    } else {
        let rows_min = (PARALLEL_WORK_MIN / 4).div_ceil(work.max(1));
        out.par_chunks_exact_mut(width).with_min_len(rows_min).enumerate().for_each(|(i, row)| fill(i, row));
    }
}
