//! Positions of a prompt with pictures: three numbers a token (time, height, width), after `get_rope_index`.

use crate::image::grid::Grid;

/// Positions of a prompt and what follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Positions {
    /// One `[time, height, width]` per token.
    pub rows: Vec<[u32; 3]>,
    /// Added to a later token's index to get its position, the same on all three rows. Never positive: a picture takes more tokens
    /// than positions.
    pub delta: i32,
}

/// A run of picture tokens in a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Index of its first token.
    pub start: usize,
    /// The picture's patches.
    pub grid: Grid,
}

/// Text counts on by one. A picture of `h x w` tokens spans rows and columns from the counter, which then goes on by `max(h, w)`.
/// `runs` are in order and do not overlap.
pub fn rope_index(len: usize, runs: &[Run], merge: usize) -> Positions {
    let mut rows: Vec<[u32; 3]> = Vec::with_capacity(len);
    let mut next = 0u32;
    for run in runs {
        text(&mut rows, &mut next, run.start);
        let (h, w) = ((run.grid.h / merge) as u32, (run.grid.w / merge) as u32);
        rows.extend((0..h).flat_map(|y| (0..w).map(move |x| [next, next + y, next + x])));
        next += h.max(w);
    }
    text(&mut rows, &mut next, len);
    let delta = next as i32 - len as i32;
    Positions { rows, delta }
}

/// Fills up to index `end`.
fn text(rows: &mut Vec<[u32; 3]>, next: &mut u32, end: usize) {
    while rows.len() < end {
        rows.push([*next; 3]);
        *next += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_takes_its_longer_side() {
        let positions = rope_index(9, &[Run { start: 2, grid: Grid { h: 4, w: 6 } }], 2);
        let expected = [[0; 3], [1; 3], [2, 2, 2], [2, 2, 3], [2, 2, 4], [2, 3, 2], [2, 3, 3], [2, 3, 4], [5; 3]];
        assert_eq!(positions, Positions { rows: expected.to_vec(), delta: 6 - 9 });
    }
}
