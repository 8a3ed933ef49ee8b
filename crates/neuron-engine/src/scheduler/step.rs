//! What one step computes.

use super::policy::Limits;
use crate::sequence::{Sequence, SequenceId};

/// Some tokens of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Whose.
    pub id: SequenceId,
    /// The first token, which is also how many are in the cache already.
    pub start: usize,
    /// How many.
    pub len: usize,
    /// True when the chunk ends with the sequence's last token, after which the next one is drawn.
    pub samples: bool,
    /// True when its only token is not known yet: it is the one that the step before this one draws for the sequence.
    pub pending: bool,
}

impl Chunk {
    /// One past the last token.
    pub fn end(&self) -> usize {
        self.start + self.len
    }
}

/// The plan of one step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Decodes first, then prefills; at most one per sequence.
    pub chunks: Vec<Chunk>,
    /// Sequences that lost their blocks and wait again; none of them has a chunk.
    pub preempted: Vec<SequenceId>,
    /// Sequences that got blocks.
    pub admitted: Vec<SequenceId>,
    /// A sequence that is left out, because its blocks are wanted once it is not being computed any more.
    pub(super) held: Option<SequenceId>,
    /// Left out are also the sequences whose draws need history, because such a draw is under way.
    pub(super) history_waits: bool,
    budget: usize,
    scores: usize,
}

impl Step {
    /// An empty plan with room for as much as `limits` say.
    pub(super) fn new(limits: &Limits) -> Self {
        Self { budget: limits.step_tokens_max, scores: limits.step_scores_max, ..Self::default() }
    }

    /// Tokens that still fit.
    pub(super) fn budget(&self) -> usize {
        self.budget
    }

    /// Tokens that may still be scored.
    pub(super) fn scores(&self) -> usize {
        self.scores
    }

    /// Whether `sequence` has to wait for a later step, whatever it could do.
    pub(super) fn leaves_out(&self, sequence: &Sequence) -> bool {
        self.held == Some(sequence.id)
            || (self.history_waits && sequence.draw_needs_history())
            || (self.scores == 0 && sequence.is_scored())
    }

    pub(super) fn push(&mut self, chunk: Chunk, scores: usize) {
        self.budget -= chunk.len;
        self.scores -= scores;
        self.chunks.push(chunk);
    }

    /// Tokens to compute.
    pub fn tokens(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.len).sum()
    }

    /// True when there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
}
