//! Attention of a whole step: cut into tasks of a few queries, which run on all threads.

use super::PARALLEL_WORK_MIN;
use super::attend::{Attend, Context};
use super::lanes::dispatch;
use rayon::prelude::*;

/// Query rows (tokens times heads of a group) that share one reading of their context.
const ROWS_OF_A_TASK: usize = 32;

/// The heads of a query tensor `[T, H, D]`; head `i` uses KV head `i / (H / Hkv)`.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) width: usize,
}

/// Consecutive tokens of `q` that share a context.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) queries: usize,
    /// Positions of the context; the queries are its last ones if the attention is causal.
    pub(crate) context: usize,
    pub(crate) causal: bool,
}

/// One piece of work: tokens `first..first + tokens` of a segment, with some of the KV heads.
struct Task<'a> {
    segment: usize,
    first: usize,
    tokens: usize,
    kv_heads: std::ops::Range<usize>,
    q: &'a [f32],
    out: &'a mut [f32],
}

/// Queries and their results.
type Rows<'a> = (Vec<&'a [f32]>, Vec<&'a mut [f32]>);

impl Task<'_> {
    fn run<C: Context>(self, heads: Heads, scale: f32, segment: Segment, context: impl Fn(usize) -> C) {
        let group = heads.heads / heads.kv_heads;
        let seen = |token| if segment.causal { segment.context - segment.queries + self.first + token + 1 } else { segment.context };
        let visible: Vec<usize> = (0..self.tokens * group).map(|row| seen(row / group)).collect();
        // The rows of each KV head, token by token.
        let mut rows: Vec<Rows<'_>> = self.kv_heads.clone().map(|_| Rows::default()).collect();
        for (i, (q, out)) in self.q.chunks_exact(heads.width).zip(self.out.chunks_exact_mut(heads.width)).enumerate() {
            let (rows, outs) = &mut rows[i / group % self.kv_heads.len()];
            rows.push(q);
            outs.push(out);
        }
        for (kv_head, (rows, out)) in self.kv_heads.zip(rows) {
            dispatch(Attend { context: &context(kv_head), rows: &rows, visible: &visible, scale, out });
        }
    }
}

/// Attends from `q`, `[T, H, D]`, to the context that `context` gives for a segment and a KV head.
pub(crate) fn attend_batch<C: Context>(
    q: &[f32],
    heads: Heads,
    scale: f32,
    segments: &[Segment],
    context: impl Fn(usize, usize) -> C + Sync,
    out: &mut [f32],
) {
    if out.is_empty() {
        return;
    }
    let run = |task: Task<'_>| {
        let at = task.segment;
        task.run(heads, scale, segments[at], |kv_head| context(at, kv_head));
    };
    let work: usize = segments.iter().map(|s| s.queries * s.context).sum::<usize>() * heads.heads * heads.width;
    let tasks = tasks(q, heads, segments, out);
    if work < PARALLEL_WORK_MIN {
        tasks.into_iter().for_each(run);
    } else {
        tasks.into_par_iter().with_max_len(1).for_each(run);
    }
}

/// Cuts a step so that each task owns a contiguous part of the result: a lone token by KV head, several tokens together.
fn tasks<'a>(mut q: &'a [f32], heads: Heads, segments: &[Segment], mut out: &'a mut [f32]) -> Vec<Task<'a>> {
    let group = heads.heads / heads.kv_heads;
    let tokens_max = (ROWS_OF_A_TASK / group).max(1);
    let mut tasks = Vec::new();
    let mut push = |segment, first, tokens, kv_heads: std::ops::Range<usize>| {
        let len = tokens * kv_heads.len() * group * heads.width;
        let (head, tail) = std::mem::take(&mut out).split_at_mut(len);
        tasks.push(Task { segment, first, tokens, kv_heads, q: &q[..len], out: head });
        (q, out) = (&q[len..], tail);
    };
    for (i, segment) in segments.iter().enumerate() {
        for first in (0..segment.queries).step_by(tokens_max) {
            match tokens_max.min(segment.queries - first) {
                1 => (0..heads.kv_heads).for_each(|kv_head| push(i, first, 1, kv_head..kv_head + 1)),
                tokens => push(i, first, tokens, 0..heads.kv_heads),
            }
        }
    }
    tasks
}
