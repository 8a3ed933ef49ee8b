//! A sequence and what only the scheduler knows of it: what is known, what is being computed, what may be planned next.

use std::collections::VecDeque;

use super::policy::Place;
use super::step::Chunk;
use crate::cache::prefix::BlockKey;
use crate::sequence::Sequence;

/// Chunks of one sequence that may be on their way at a time, with lookahead: one that is computed, and one behind it that
/// starts from the token that the first one draws. A third would start from a token that no step under way has drawn yet.
const IN_FLIGHT_MAX: usize = 2;

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) sequence: Sequence,
    pub(super) place: Place,
    /// Keys of its full blocks.
    pub(super) keys: Vec<BlockKey>,
    /// Blocks of its table already offered to the prefix cache, or found in it.
    pub(super) published: usize,
    /// Chunks that were scheduled but not committed, oldest first.
    pub(super) in_flight: VecDeque<Chunk>,
}

/// What a sequence could do in the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Nothing, until something is committed.
    Wait,
    /// Its newest token, known or being drawn.
    Decode,
    /// More of its prompt, or of what it lost.
    Prefill,
}

impl Entry {
    pub(super) fn new(sequence: Sequence, place: Place) -> Self {
        Self { sequence, place, keys: Vec::new(), published: 0, in_flight: VecDeque::new() }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Tokens computed or being computed: where its next chunk starts.
    pub(super) fn planned(&self) -> usize {
        self.in_flight.back().map_or(self.sequence.computed, Chunk::end)
    }

    /// Tokens that chunks in flight draw.
    fn pending(&self) -> usize {
        self.in_flight.iter().filter(|chunk| chunk.samples).count()
    }

    /// Its tokens, those being drawn included.
    fn len_ahead(&self) -> usize {
        self.sequence.tokens.len() + self.pending()
    }

    /// True while a token is being drawn without which the sequence's next draw cannot be described.
    pub(super) fn draws_history(&self) -> bool {
        self.sequence.draw_needs_history() && self.pending() > 0
    }

    pub(super) fn wish(&self, lookahead: bool) -> Wish {
        let in_flight_max = if lookahead { IN_FLIGHT_MAX } else { 1 };
        if self.in_flight.len() >= in_flight_max || self.sequence.is_full_at(self.len_ahead()) {
            return Wish::Wait;
        }
        match self.len_ahead() - self.planned() {
            0 => Wish::Wait,
            1 => Wish::Decode,
            _ => Wish::Prefill,
        }
    }

    /// Its next chunk, of at most `budget` tokens, of which at most `scores` score others.
    pub(super) fn next_chunk(&self, budget: usize, scores: usize) -> Chunk {
        let (start, end) = (self.planned(), self.len_ahead());
        let scored = self.sequence.scores(start, end);
        let scored_len = if scored.len() > scores { scored.start + scores - 1 - start } else { end - start };
        let len = scored_len.min(budget);
        Chunk { id: self.sequence.id, start, len, samples: start + len == end, pending: start >= self.sequence.tokens.len() }
    }

    /// Compares what is in flight with what is known; says what is wrong.
    pub(super) fn check(&self, lookahead: bool) -> Result<(), String> {
        let Sequence { id, tokens, computed, .. } = &self.sequence;
        let complain =
            |what: &str| Err(format!("sequence {}: {what}: {:?}, {computed} of {} computed", id.0, self.in_flight, tokens.len()));
        let mut start = *computed;
        let mut len = tokens.len();
        for chunk in &self.in_flight {
            if chunk.start != start || chunk.len == 0 || chunk.end() > len {
                return complain("chunks in flight do not follow each other");
            }
            let guessed = chunk.start >= tokens.len() && !chunk.pending;
            if chunk.samples != (chunk.end() == len) || guessed || (chunk.pending && chunk.len != 1) {
                return complain("a chunk in flight is not what it says");
            }
            start = chunk.end();
            len += usize::from(chunk.samples);
        }
        match () {
            () if *computed > tokens.len() => complain("more is computed than known"),
            () if self.in_flight.len() > if lookahead { IN_FLIGHT_MAX } else { 1 } => complain("too much is in flight"),
            () if self.sequence.draw_needs_history() && self.in_flight.iter().any(|chunk| chunk.pending) => {
                complain("a draw does not know its history")
            }
            () if start > self.sequence.total_len_max.max(tokens.len()) => complain("it goes on past its end"),
            () => Ok(()),
        }
    }
}
