//! What was drawn, on the device until somebody asks.

use candle_core::{Result, Tensor, bail};

use super::ALTERNATIVES_MAX;

/// No fault, no token.
pub(super) const NONE: u32 = u32::MAX;

/// In the place of a token that is at fault.
pub(super) const NO_CANDIDATE: u32 = NONE - 1;

/// Words of a row's log-probabilities: the chosen one's, the alternatives' ids, theirs.
pub(super) const LOGPROB_WORDS: usize = 1 + 2 * ALTERNATIVES_MAX as usize;

/// The tokens of one step.
#[derive(Clone, Debug)]
pub struct Outcome {
    words: Tensor,
    logprobs: Vec<Option<u8>>,
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// The id.
    pub token: u32,
    /// Present when asked for.
    pub logprobs: Option<Logprobs>,
}

/// Natural-log probabilities under the model's own distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Of the token that was drawn.
    pub chosen: f32,
    /// The most probable tokens, best first; fewer than asked when the rest cannot occur.
    pub top: Vec<(u32, f32)>,
}

/// Why a row has no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A logit is infinite or not a number.
    NotFinite {
        /// The first such token.
        token: u32,
    },
    /// Every token has probability 0, or none is allowed.
    NoCandidate,
}

impl Outcome {
    /// `memory` begins with tokens, faults and log-probabilities; `asked` says which rows have any of the last.
    pub(super) fn new(memory: &Tensor, asked: Vec<Option<u8>>) -> Result<Self> {
        let len = 2 * asked.len() + asked.iter().flatten().count() * LOGPROB_WORDS;
        Ok(Self { words: memory.narrow(0, 0, len)?, logprobs: asked })
    }

    /// The tokens, `[R]` u32, where they were drawn. A row at fault has token 0.
    ///
    /// # Errors
    /// Never, on a device that works.
    pub fn tokens(&self) -> Result<Tensor> {
        self.words.narrow(0, 0, self.logprobs.len())
    }

    /// All of it, as it lies on the device, `[N]` u32: what [`Outcome::read`] makes sense of once it has been copied to the host.
    pub fn words(&self) -> &Tensor {
        &self.words
    }

    /// What each row got, from the words as they were on the device.
    ///
    /// # Errors
    /// When there are not as many words.
    pub fn read(&self, words: &[u32]) -> Result<Vec<std::result::Result<Drawn, Fault>>> {
        let rows = self.logprobs.len();
        if words.len() != self.words.elem_count() {
            bail!("draw: an outcome of {} words, got {}", self.words.elem_count(), words.len());
        }
        let (tokens, rest) = words.split_at(rows);
        let (faults, reports) = rest.split_at(rows);
        let mut reports = reports.chunks_exact(LOGPROB_WORDS);
        let row = |((&token, &fault), asked): ((&u32, &u32), &Option<u8>)| {
            let report = asked.and_then(|count| Some((count, reports.next()?)));
            match fault {
                NONE => Ok(Drawn { token, logprobs: report.map(|(count, words)| Logprobs::read(words, count)) }),
                NO_CANDIDATE => Err(Fault::NoCandidate),
                token => Err(Fault::NotFinite { token }),
            }
        };
        Ok(tokens.iter().zip(faults).zip(&self.logprobs).map(row).collect())
    }
}

impl Logprobs {
    fn read(words: &[u32], count: u8) -> Self {
        let (ids, values) = words[1..].split_at(ALTERNATIVES_MAX.into());
        let top = ids.iter().zip(values).take(count.into()).take_while(|&(&id, _)| id != NONE);
        Self { chosen: f32::from_bits(words[0]), top: top.map(|(&id, &value)| (id, f32::from_bits(value))).collect() }
    }
}
