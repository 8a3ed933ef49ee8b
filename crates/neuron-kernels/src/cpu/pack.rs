//! Matrices laid out again in the order in which the tile kernel reads them.
//!
//! Rows go in tiles of `R`, and inside a tile the vectors of the rows alternate, so the kernel reads one stream. What a tile or a
//! row lacks is zero, and a product with zero leaves a sum as it was.

use super::element::Element;
use super::lanes::{Kernel, LANES, Lanes, dispatch};
use rayon::prelude::*;

/// Vectors of one block along the inner dimension: a tile of it stays in the first cache.
pub(crate) const BLOCK_VECTORS: usize = 64;

/// One vector of each row of a tile.
pub(crate) type Step<const R: usize> = [[f32; LANES]; R];

/// A whole `[rows, k]` matrix in tiles of `R` rows, one block of the inner dimension after another.
pub(crate) struct Packed<const R: usize> {
    steps: Vec<Step<R>>,
    tiles: usize,
    vectors: usize,
}

impl<const R: usize> Packed<R> {
    pub(crate) fn new(x: &[f32], rows: usize, k: usize, parallel: bool) -> Self {
        let (tiles, vectors) = (rows.div_ceil(R), k.div_ceil(LANES));
        let mut steps = vec![[[0.0; LANES]; R]; tiles * vectors];
        let mut rest = steps.as_mut_slice();
        for start in (0..vectors).step_by(BLOCK_VECTORS) {
            let len = BLOCK_VECTORS.min(vectors - start);
            let (block, tail) = rest.split_at_mut(tiles * len);
            rest = tail;
            let pack = |(tile, steps): (usize, &mut [Step<R>])| {
                let rows = &x[tile * R * k..rows.min((tile + 1) * R) * k];
                dispatch(PackTile { rows, k, start: start * LANES, steps });
            };
            if parallel {
                block.par_chunks_mut(len).enumerate().for_each(pack);
            } else {
                block.chunks_mut(len).enumerate().for_each(pack);
            }
        }
        Self { steps, tiles, vectors }
    }

    /// The steps of one tile inside the block that begins at vector `start`.
    #[inline(always)]
    pub(crate) fn tile(&self, start: usize, tile: usize) -> &[Step<R>] {
        let len = BLOCK_VECTORS.min(self.vectors - start);
        let at = start * self.tiles + tile * len;
        &self.steps[at..at + len]
    }
}

/// Packs one block of `rows` (`[up to R, k]`) from column `start` on, widening it to f32.
pub(crate) struct PackTile<'a, T, const R: usize> {
    pub(crate) rows: &'a [T],
    pub(crate) k: usize,
    pub(crate) start: usize,
    pub(crate) steps: &'a mut [Step<R>],
}

impl<T: Element, const R: usize> Kernel for PackTile<'_, T, R> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        for r in 0..R {
            let Some(row) = self.rows.get(r * self.k..(r + 1) * self.k) else {
                self.steps.iter_mut().for_each(|step| step[r] = [0.0; LANES]);
                continue;
            };
            let (groups, tail) = row[self.start..].as_chunks::<LANES>();
            for (step, group) in self.steps.iter_mut().zip(groups) {
                step[r] = lanes.store(T::load(lanes, group));
            }
            if let Some(step) = self.steps.get_mut(groups.len())
                && !tail.is_empty()
            {
                step[r] = lanes.store(T::load_part(lanes, tail));
            }
        }
    }
}
