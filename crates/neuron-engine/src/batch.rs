//! What a device needs to execute one step: plain data that travels to the device thread.

use std::sync::Arc;

use cortex_core::SamplingParams;
use neuron_kernels::{BlockTable, PagedBatch};

use crate::sampler::{SampleRow, TokenMask};
use crate::scheduler::{Chunk, Scheduler, Step};
use crate::sequence::{ImageSpan, Sequence, SequenceId, SequenceMap};

/// One step: T new tokens of S sequences laid end to end, in the order of the step's chunks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// `[S]`
    pub sequences: Vec<BatchSequence>,
    /// Tokens per block.
    pub block_size: usize,
}

/// One sequence's share of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchSequence {
    /// Whose.
    pub id: SequenceId,
    /// The new tokens.
    pub tokens: NewTokens,
    /// How many tokens stand before them, in the cache.
    pub start: usize,
    /// At least the blocks of tokens `0..context_len`.
    pub blocks: BlockTable,
    /// Tokens in the cache once the step has run.
    pub context_len: usize,
    /// Rotary positions (time, height, width) of the new tokens.
    pub positions: Vec<[u32; 3]>,
    /// Parts of pictures among the new tokens.
    pub images: Vec<ImagePart>,
    /// What is asked of the rows before that of `sample`: how probable a token of the prompt was, one draw without a choice each.
    pub scores: Vec<Sample>,
    /// How to draw the next token from the last row; absent while the prompt goes on in a later step.
    pub sample: Option<Sample>,
}

/// Whose row of logits it is, and whether it scores the prompt or draws the next token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Whose.
    pub id: SequenceId,
    /// A token of the prompt is scored.
    pub scores: bool,
}

/// The tokens that a step computes for one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewTokens {
    /// These.
    Known(Vec<u32>),
    /// One: the token that the step before this one draws for the sequence. The host does not know it yet; the device does by
    /// the time it runs this step. If that step failed there is none, and the sequence takes no part in this one.
    Pending,
}

/// The part of a picture that falls into a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImagePart {
    /// The whole picture.
    pub image: ImageSpan,
    /// The first of its feature rows that is needed.
    pub offset: usize,
    /// The new token, counted from the chunk's first, that this row replaces.
    pub row: usize,
    /// How many rows.
    pub len: usize,
}

/// All that the sampler needs for one token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// How to choose.
    pub params: Arc<SamplingParams>,
    /// Index of the token to be drawn in its sequence.
    pub position: u64,
    /// The prompt, if penalties ask for it; otherwise empty.
    pub prompt: Vec<u32>,
    /// The answer so far, if penalties ask for it; otherwise empty.
    pub answer: Vec<u32>,
    /// Report the log-probability of the token, and of this many alternatives.
    pub logprobs: Option<u8>,
    /// Only these tokens may be drawn; absent: all. The engine sets it for answers that are held to a form.
    pub allowed: Option<Arc<TokenMask>>,
}

impl Batch {
    /// The data of `step`, which `scheduler` has just planned.
    pub fn new(step: &Step, scheduler: &Scheduler) -> Self {
        let block_size = scheduler.blocks().block_size();
        let mut sequences = Vec::with_capacity(step.chunks.len());
        sequences.extend(step.chunks.iter().filter_map(|chunk| Some(BatchSequence::new(chunk, scheduler.sequence(chunk.id)?))));
        Self { sequences, block_size }
    }

    /// T.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.tokens.len()).sum()
    }

    /// Token ids, `[T]`, pending ones as the last step drew them; `None` if it drew none for a sequence that waits for one.
    pub fn ids(&self, drawn: &SequenceMap<u32>) -> Option<Vec<u32>> {
        let mut ids = Vec::with_capacity(self.tokens());
        for sequence in &self.sequences {
            match &sequence.tokens {
                NewTokens::Known(tokens) => ids.extend_from_slice(tokens),
                NewTokens::Pending => ids.push(*drawn.get(&sequence.id)?),
            }
        }
        Some(ids)
    }

    /// The sequences whose token is pending, in order.
    pub fn pending(&self) -> impl Iterator<Item = SequenceId> {
        self.sequences.iter().filter(|sequence| sequence.tokens == NewTokens::Pending).map(|sequence| sequence.id)
    }

    /// Rotary positions, `[3, T]` row by row: time, height, width.
    pub fn positions(&self) -> Vec<u32> {
        let mut rows = Vec::with_capacity(3 * self.tokens());
        for axis in 0..3 {
            rows.extend(self.sequences.iter().flat_map(|sequence| &sequence.positions).map(|position| position[axis]));
        }
        rows
    }

    /// The rows of T that logits are wanted of, `[R]`: the last ones of each sequence, as many as are asked something, in order.
    pub fn logit_rows(&self) -> Vec<u32> {
        let ends = self.sequences.iter().scan(0, |end, sequence| {
            *end += sequence.tokens.len() as u32;
            Some((*end, sequence))
        });
        ends.flat_map(|(end, sequence)| end - sequence.asked().count() as u32..end).collect()
    }

    /// What is asked of each of `logit_rows`.
    pub fn asked(&self) -> impl Iterator<Item = (Asked, &Sample)> {
        self.sequences.iter().flat_map(BatchSequence::asked)
    }

    /// The parts of pictures in the step, each with the row of T where it begins.
    pub fn image_parts(&self) -> Vec<(usize, ImagePart)> {
        let mut first = 0;
        let mut parts = Vec::new();
        for sequence in &self.sequences {
            parts.extend(sequence.images.iter().map(|part| (first + part.row, *part)));
            first += sequence.tokens.len();
        }
        parts
    }

    /// The slot of each new token, `[T]`.
    pub fn slots(&self) -> impl Iterator<Item = u32> {
        self.sequences.iter().flat_map(|sequence| sequence.slots(self.block_size))
    }

    /// Where keys and values go, and what each sequence may look at.
    pub fn paged(&self) -> PagedBatch {
        PagedBatch {
            query_lens: self.sequences.iter().map(|sequence| sequence.tokens.len()).collect(),
            context_lens: self.sequences.iter().map(|sequence| sequence.context_len).collect(),
            block_tables: self.sequences.iter().map(|sequence| sequence.blocks.clone()).collect(),
            slots: self.slots().collect(),
            block_size: self.block_size,
            tables: None,
        }
    }
}

impl NewTokens {
    fn of(chunk: &Chunk, sequence: &Sequence) -> Self {
        if chunk.pending { Self::Pending } else { Self::Known(sequence.tokens[chunk.start..chunk.end()].to_vec()) }
    }

    /// How many.
    #[expect(clippy::len_without_is_empty, reason = "there is always one at least")]
    pub fn len(&self) -> usize {
        match self {
            Self::Known(tokens) => tokens.len(),
            Self::Pending => 1,
        }
    }
}

impl BatchSequence {
    fn new(chunk: &Chunk, sequence: &Sequence) -> Self {
        let (start, end) = (chunk.start, chunk.end());
        Self {
            id: chunk.id,
            tokens: NewTokens::of(chunk, sequence),
            start,
            blocks: sequence.blocks.clone(),
            context_len: end,
            positions: (start..end).map(|index| sequence.position(index)).collect(),
            images: sequence.images.iter().filter_map(|image| ImagePart::within(*image, start, end)).collect(),
            scores: sequence.scores(start, end).map(|index| Sample::score(sequence, index)).collect(),
            sample: chunk.samples.then(|| Sample::new(sequence, end)),
        }
    }

    fn asked(&self) -> impl Iterator<Item = (Asked, &Sample)> {
        let asked = |scores| move |sample| (Asked { id: self.id, scores }, sample);
        self.scores.iter().map(asked(true)).chain(self.sample.iter().map(asked(false)))
    }

    /// The slot (`block * block_size + offset`) of each new token.
    fn slots(&self, block_size: usize) -> impl Iterator<Item = u32> {
        (self.start..self.context_len).map(move |index| self.blocks[index / block_size] * block_size as u32 + (index % block_size) as u32)
    }
}

impl ImagePart {
    /// What of `image` lies in the tokens `start..end`.
    fn within(image: ImageSpan, start: usize, end: usize) -> Option<Self> {
        let (first, last) = (image.start.max(start), image.end().min(end));
        (first < last).then(|| Self { image, offset: first - image.start, row: first - start, len: last - first })
    }
}

impl Sample {
    /// The same for the sampler.
    pub fn row(&self) -> SampleRow<'_> {
        let Self { params, position, prompt, answer, logprobs, allowed } = self;
        SampleRow { params, position: *position, prompt, answer, logprobs: *logprobs, allowed: allowed.as_deref() }
    }

    /// The draw of token `index` of `sequence`.
    fn new(sequence: &Sequence, index: usize) -> Self {
        let seen = |tokens: &[u32]| if sequence.sampling.has_penalties() { tokens.to_vec() } else { Vec::new() };
        Self {
            params: sequence.sampling.clone(),
            position: index as u64,
            prompt: seen(sequence.prompt()),
            answer: seen(sequence.answer()),
            logprobs: sequence.logprobs,
            allowed: None,
        }
    }

    /// The log-probability of token `index` of the prompt of `sequence`: what a draw reports that may choose this token only.
    fn score(sequence: &Sequence, index: usize) -> Self {
        let only = TokenMask::only(sequence.tokens[index]);
        let params = Arc::new(SamplingParams::greedy());
        Self { params, position: index as u64, prompt: vec![], answer: vec![], logprobs: sequence.logprobs, allowed: Some(Arc::new(only)) }
    }
}
