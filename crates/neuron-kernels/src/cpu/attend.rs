//! Attention of a few query rows over one context, read once from its first position to its last.
//!
//! A query sees the positions in tiles of 32 counted from position 0, with a running maximum and a running sum. The tiles depend
//! on nothing but the positions, so a query has the same numbers whatever its neighbours, its chunk, or its blocks.

use super::element::Element;
use super::lanes::{Kernel, LANES, Lanes};
use super::math::exp;
use super::matmul::dots;

/// Positions of one tile.
const TILE: usize = 32;

/// The keys and values of one sequence and one KV head.
pub(crate) trait Context: Sync {
    type Element: Element;
    /// The key of one position, `[D]`.
    fn key(&self, position: usize) -> &[Self::Element];
    /// The value of one position, `[D]`.
    fn value(&self, position: usize) -> &[Self::Element];
}

/// Attends with queries that share a context.
pub(crate) struct Attend<'a, C> {
    pub(crate) context: &'a C,
    /// The queries, each `[D]`.
    pub(crate) rows: &'a [&'a [f32]],
    /// How many positions, counted from the first, each query sees: at least 1, in rising order.
    pub(crate) visible: &'a [usize],
    /// Factor of the scores.
    pub(crate) scale: f32,
    /// The results, each `[D]`.
    pub(crate) out: Vec<&'a mut [f32]>,
}

/// The softmax of one query so far.
#[derive(Clone, Copy)]
struct State {
    max: f32,
    sum: f32,
}

impl<C: Context> Kernel for Attend<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self { context, rows, visible, scale, out } = self;
        let Some((&end, first)) = visible.last().zip(rows.first()) else { return };
        let vectors = first.len().div_ceil(LANES);
        let mut states = vec![State { max: f32::NEG_INFINITY, sum: 0.0 }; rows.len()];
        let mut scores = vec![[0.0; TILE]; rows.len()];
        let mut acc = vec![[0.0; LANES]; rows.len() * vectors];
        for start in (0..end).step_by(TILE) {
            let len = TILE.min(end - start);
            let mut keys: [&[C::Element]; TILE] = [&[]; TILE];
            let mut values = keys;
            for i in 0..len {
                (keys[i], values[i]) = (context.key(start + i), context.value(start + i));
            }
            let live = visible.partition_point(|&n| n <= start);
            score(lanes, &keys[..len], &rows[live..], &mut scores[live..]);
            let mut row = live;
            while row < rows.len() {
                let seen = (visible[row] - start).min(len);
                let alike = visible[row..].iter().take(4).take_while(|&&n| (n - start).min(len) == seen).count();
                let acc = &mut acc[row * vectors..(row + alike) * vectors];
                for (i, acc) in acc.chunks_exact_mut(vectors).enumerate() {
                    soften(lanes, &mut states[row + i], &mut scores[row + i], seen, scale, acc);
                }
                let (values, weights) = (&values[..seen], &scores[row..row + alike]);
                match alike {
                    1 => gather::<L, C::Element, 1, 8>(lanes, values, weights, acc),
                    2 => gather::<L, C::Element, 2, 4>(lanes, values, weights, acc),
                    3 => gather::<L, C::Element, 3, 3>(lanes, values, weights, acc),
                    _ => gather::<L, C::Element, 4, 2>(lanes, values, weights, acc),
                }
                row += alike;
            }
        }
        for ((state, acc), out) in states.iter().zip(acc.chunks_exact(vectors)).zip(out) {
            for (out, acc) in out.iter_mut().zip(acc.as_flattened()) {
                *out = acc / state.sum;
            }
        }
    }
}

/// The products of each row with each key of a tile.
#[inline(always)]
fn score<L: Lanes, T: Element>(lanes: L, keys: &[&[T]], mut rows: &[&[f32]], mut scores: &mut [[f32; TILE]]) {
    while let Some((four, rest)) = rows.split_first_chunk::<4>() {
        let (head, tail) = scores.split_at_mut(4);
        score_rows::<L, T, 4, 3>(lanes, *four, keys, head);
        (rows, scores) = (rest, tail);
    }
    match *rows {
        [a] => score_rows::<L, T, 1, 8>(lanes, [a], keys, scores),
        [a, b] => score_rows::<L, T, 2, 6>(lanes, [a, b], keys, scores),
        [a, b, c] => score_rows::<L, T, 3, 4>(lanes, [a, b, c], keys, scores),
        _ => {}
    }
}

#[inline(always)]
fn score_rows<L: Lanes, T: Element, const R: usize, const N: usize>(
    lanes: L,
    rows: [&[f32]; R],
    keys: &[&[T]],
    scores: &mut [[f32; TILE]],
) {
    let mut at = 0;
    for keys in keys.chunks(N) {
        // A short last group repeats its last key; the extra products are dropped.
        let tile = dots::<L, T, R, N>(lanes, rows, std::array::from_fn(|i| keys[i.min(keys.len() - 1)]));
        for (tile, scores) in tile.iter().zip(scores.iter_mut()) {
            scores[at..at + keys.len()].copy_from_slice(&tile[..keys.len()]);
        }
        at += keys.len();
    }
}

/// Turns the `seen` first scores of a tile into weights, the others into 0, and scales what was gathered to the new maximum.
#[inline(always)]
fn soften<L: Lanes>(lanes: L, state: &mut State, scores: &mut [f32; TILE], seen: usize, scale: f32, acc: &mut [[f32; LANES]]) {
    scores[seen..].fill(f32::NEG_INFINITY);
    let groups = scores.as_chunks_mut::<LANES>().0;
    let mut top = [f32::NEG_INFINITY; LANES];
    for group in groups.iter_mut() {
        for (top, s) in top.iter_mut().zip(group) {
            *s *= scale;
            *top = if *s > *top { *s } else { *top };
        }
    }
    let max = top.into_iter().fold(state.max, f32::max);
    let mut sum = [0.0; LANES];
    for group in groups {
        for (sum, s) in sum.iter_mut().zip(group) {
            *s = exp(*s - max);
            *sum += *s;
        }
    }
    let decay = exp(state.max - max);
    *state = State { max, sum: state.sum.mul_add(decay, lanes.sum(lanes.load(&sum))) };
    if decay != 1.0 {
        acc.as_flattened_mut().iter_mut().for_each(|a| *a *= decay);
    }
}

/// Adds the weighted values of a tile to `R` rows of `acc`, position by position, `W` vectors at a time.
#[inline(always)]
fn gather<L: Lanes, T: Element, const R: usize, const W: usize>(
    lanes: L,
    values: &[&[T]],
    weights: &[[f32; TILE]],
    acc: &mut [[f32; LANES]],
) {
    let whole = values[0].len() / LANES;
    let mut at = 0;
    while at + W <= whole {
        gather_columns::<L, T, R, W>(lanes, values, weights, acc, at);
        at += W;
    }
    while at < acc.len() / R {
        gather_columns::<L, T, R, 1>(lanes, values, weights, acc, at);
        at += 1;
    }
}

#[inline(always)]
fn gather_columns<L: Lanes, T: Element, const R: usize, const W: usize>(
    lanes: L,
    values: &[&[T]],
    weights: &[[f32; TILE]],
    acc: &mut [[f32; LANES]],
    at: usize,
) {
    let vectors = acc.len() / R;
    let mut sums = [[lanes.splat(0.0); W]; R];
    for r in 0..R {
        for w in 0..W {
            sums[r][w] = lanes.load(&acc[r * vectors + at + w]);
        }
    }
    for (i, value) in values.iter().enumerate() {
        let value = &value[at * LANES..];
        let mut vs = [lanes.splat(0.0); W];
        match value.as_chunks::<LANES>().0.first_chunk::<W>() {
            Some(groups) => {
                for w in 0..W {
                    vs[w] = T::load(lanes, &groups[w]);
                }
            }
            // Only the last vector of a row can be short, and it is taken alone.
            None => vs[0] = T::load_part(lanes, value),
        }
        for r in 0..R {
            let weight = lanes.splat(weights[r][i]);
            for w in 0..W {
                sums[r][w] = lanes.mul_add(weight, vs[w], sums[r][w]);
            }
        }
    }
    for r in 0..R {
        for w in 0..W {
            acc[r * vectors + at + w] = lanes.store(sums[r][w]);
        }
    }
}
