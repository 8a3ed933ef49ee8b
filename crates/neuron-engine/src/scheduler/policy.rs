//! The rules of the scheduler, as functions of values.

use crate::sequence::SequenceId;

/// Bounds of the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens computed in one step, over all sequences.
    pub step_tokens_max: usize,
    /// Tokens of prompts scored in one step, over all sequences. Each takes a row of logits, as wide as the vocabulary.
    pub step_scores_max: usize,
    /// Sequences that hold blocks at one time.
    pub running_max: usize,
    /// Sequences that may wait; preempted ones come back even beyond it.
    pub waiting_max: usize,
    /// Plan a sequence's next chunk while its last one is being computed. At most two steps may then be under way, committed in
    /// order.
    pub lookahead: bool,
}

impl Limits {
    /// The same with room for every running sequence to decode in every step.
    pub fn sane(self) -> Self {
        let step_tokens_max = self.step_tokens_max.max(1);
        let step_scores_max = self.step_scores_max.max(1);
        Self { step_tokens_max, step_scores_max, running_max: self.running_max.clamp(1, step_tokens_max), ..self }
    }
}

/// A sequence's place in every queue: by class, then by when it came. It is kept through preemptions, so a preempted sequence
/// waits before all that came later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Lower is more urgent.
    pub priority: u8,
    /// Counts up with each sequence added.
    pub arrival: u64,
    /// Whose place it is.
    pub id: SequenceId,
}

/// The sequence that gives up its blocks when another needs one: the last to come in the least urgent class. `running` is in
/// order of place.
pub fn victim(running: &[Place]) -> Option<Place> {
    running.last().copied()
}

/// Whether a sequence may start. One block per running sequence that can still grow is left alone: a newcomer that takes them
/// would only be preempted a few steps later.
pub fn may_admit(needed_blocks: usize, free_blocks: usize, growing: usize) -> bool {
    needed_blocks + growing <= free_blocks
}
