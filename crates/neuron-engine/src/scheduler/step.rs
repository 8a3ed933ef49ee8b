//! What one step computes.

use crate::sequence::SequenceId;

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
    budget: usize,
}

impl Step {
    /// An empty plan with room for `budget` tokens.
    pub(super) fn new(budget: usize) -> Self {
        Self { budget, ..Self::default() }
    }

    /// Tokens that still fit.
    pub(super) fn budget(&self) -> usize {
        self.budget
    }

    pub(super) fn push(&mut self, chunk: Chunk) {
        self.budget -= chunk.len;
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
