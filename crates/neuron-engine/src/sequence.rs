//! One prompt and its answer on their way through the engine.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;
use std::sync::Arc;

use cortex_core::SamplingParams;
use neuron_kernels::BlockTable;

/// Names a sequence for as long as the engine lives; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// Things by sequence. A step looks up each of its sequences a dozen times.
pub type SequenceMap<T> = HashMap<SequenceId, T, BuildHasherDefault<IdHasher>>;

/// Spreads ids by one multiplication. Nobody outside chooses them, so they need no hash that withstands an attack.
#[derive(Clone, Copy, Debug, Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    fn write_u64(&mut self, number: u64) {
        // 2^64 over the golden ratio, the multiplier of Fibonacci hashing.
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// The class of requests that ask for none. Lower numbers are more urgent.
pub const PRIORITY_DEFAULT: u8 = 128;

/// Where a picture stands in a prompt: the image tokens `start..start + len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageSpan {
    /// First image token, counted from the prompt's start.
    pub start: usize,
    /// Image tokens, one per merged patch.
    pub len: usize,
    /// Hash of all that the vision tower and the positions depend on: the pixels as resized, and the grid.
    pub hash: u64,
}

impl ImageSpan {
    /// One past the last image token.
    pub fn end(&self) -> usize {
        self.start + self.len
    }

    /// True when some image token lies in `start..end`.
    pub fn overlaps(&self, start: usize, end: usize) -> bool {
        self.start < end && start < self.end()
    }
}

/// Where a sequence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceStatus {
    /// Never run yet; holds no blocks.
    Waiting,
    /// Holds blocks for all its tokens.
    Running,
    /// Ran, lost its blocks to another sequence, and waits to be computed anew.
    Preempted,
}

/// One prompt and its answer so far.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// Its name.
    pub id: SequenceId,
    /// The prompt, then the answer.
    pub tokens: Vec<u32>,
    /// How many of `tokens` are prompt.
    pub prompt_len: usize,
    /// Tokens whose keys and values are in the cache.
    pub computed: usize,
    /// The first token of the prompt whose log-probability is still to be told, by the logits of the token before it; `prompt_len` when
    /// none is.
    pub score_from: usize,
    /// Tokens that the prefix cache held when the sequence was first admitted.
    pub cached: usize,
    /// Its block table: block `i` holds tokens `i * block_size ..`.
    pub blocks: BlockTable,
    /// Most tokens it may ever have: the prompt and its longest answer, within the model's context.
    pub total_len_max: usize,
    /// Pictures of the prompt, in order, not overlapping.
    pub images: Vec<ImageSpan>,
    /// Lower is more urgent.
    pub priority: u8,
    /// Sequences share cached blocks only with those of the same salt.
    pub salt: u64,
    /// Where it is.
    pub status: SequenceStatus,
    /// How its tokens are chosen.
    pub sampling: Arc<SamplingParams>,
    /// What may be drawn depends on the tokens drawn before: the answer is held to a form.
    pub held_to_form: bool,
    /// Report the log-probability of each token, and of this many alternatives.
    pub logprobs: Option<u8>,
    /// Rotary positions (time, height, width) of the prompt's tokens; absent for text, whose positions count up from 0.
    pub positions: Option<Arc<[[u32; 3]]>>,
    /// Added to a token's index to get its position behind `positions`.
    pub rope_delta: i32,
}

impl Sequence {
    /// A text prompt of the default class, sampled greedily. The other fields are set by whoever needs them.
    pub fn new(id: SequenceId, prompt: Vec<u32>, total_len_max: usize) -> Self {
        Self {
            id,
            prompt_len: prompt.len(),
            score_from: prompt.len(),
            tokens: prompt,
            computed: 0,
            cached: 0,
            blocks: BlockTable::default(),
            total_len_max,
            images: Vec::new(),
            priority: PRIORITY_DEFAULT,
            salt: 0,
            status: SequenceStatus::Waiting,
            sampling: Arc::new(SamplingParams::greedy()),
            held_to_form: false,
            logprobs: None,
            positions: None,
            rope_delta: 0,
        }
    }

    /// The prompt's tokens.
    pub fn prompt(&self) -> &[u32] {
        &self.tokens[..self.prompt_len]
    }

    /// The tokens generated so far.
    pub fn answer(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    /// Known tokens that are not in the cache yet.
    pub fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// True when an answer is wanted, not only what the model says of the prompt.
    pub fn answers(&self) -> bool {
        self.total_len_max > self.prompt_len
    }

    /// True while tokens of the prompt are to be scored.
    pub fn is_scored(&self) -> bool {
        self.score_from < self.prompt_len
    }

    /// The tokens that the logits of the tokens `start..end` score.
    pub fn scores(&self, start: usize, end: usize) -> Range<usize> {
        let first = self.score_from.max(start + 1);
        first..self.prompt_len.min(end + 1).max(first)
    }

    /// How many tokens may come out of the prefix cache: not the last one, nor those whose logits score others.
    pub fn reusable(&self) -> usize {
        if self.is_scored() { self.score_from - 1 } else { self.tokens.len() - 1 }
    }

    /// True once the answer is as long as it may be; its last token is never computed.
    pub fn is_full(&self) -> bool {
        self.is_full_at(self.tokens.len())
    }

    /// The same once it has `len` tokens.
    pub fn is_full_at(&self, len: usize) -> bool {
        len > self.prompt_len && len >= self.total_len_max
    }

    /// True when a draw depends on tokens drawn before it, beyond the model's own view of them: it cannot be planned before they
    /// are known on the host.
    pub fn draw_needs_history(&self) -> bool {
        self.held_to_form || self.sampling.has_penalties()
    }

    /// Rotary position (time, height, width) of token `index`.
    pub fn position(&self, index: usize) -> [u32; 3] {
        match &self.positions {
            None => [index as u32; 3],
            Some(prompt) => match prompt.get(index) {
                Some(position) => *position,
                None => [(index as i64 + i64::from(self.rope_delta)) as u32; 3],
            },
        }
    }
}
