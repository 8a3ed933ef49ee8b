//! One answer on its way through a grammar: which tokens may come next.

use std::fmt;
use std::sync::Arc;

use llguidance::Matcher;

use super::Alphabet;
use crate::sampler::TokenMask;
use crate::text::parser::Start;

const THINK_CLOSE: &[u8] = b"</think>";

/// A grammar can go no further: a fault here, never the client's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer left its grammar: {0}")]
pub struct GrammarError(String);

/// What holds one answer to its form. Told of each token, it knows which may follow.
pub struct Constraint {
    matcher: Matcher,
    /// The matcher before its first token, where the form begins anew at each trigger.
    fresh: Option<Matcher>,
    trigger: Option<&'static str>,
    alphabet: Arc<Alphabet>,
    stage: Stage,
    /// The last bytes, in which a marker may have begun.
    tail: Vec<u8>,
    /// `None`: all.
    allowed: Option<Arc<TokenMask>>,
}

/// Where the answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// At its beginning: a thought may come.
    Begun,
    /// Inside a thought, which may say anything but must not end the answer.
    Thinking,
    /// Just behind a thought, where models like a line break.
    Thought,
    /// In text that is free until a trigger.
    Free,
    /// Held by the grammar.
    Held,
}

impl Constraint {
    pub(super) fn new(
        matcher: Matcher,
        alphabet: Arc<Alphabet>,
        trigger: Option<&'static str>,
        start: Start,
        may_think: bool,
    ) -> Result<Self, GrammarError> {
        let stage = match start {
            Start::Thinking => Stage::Thinking,
            Start::Fresh if may_think && alphabet.think.is_some() => Stage::Begun,
            Start::Fresh | Start::Speaking => Self::spoken(trigger),
        };
        let fresh = trigger.map(|_| matcher.deep_clone());
        let mut constraint = Self { matcher, fresh, trigger, alphabet, stage, tail: Vec::new(), allowed: None };
        constraint.allowed = constraint.mask()?;
        Ok(constraint)
    }

    /// Where an answer is that does not think, or no longer.
    fn spoken(trigger: Option<&str>) -> Stage {
        if trigger.is_some() { Stage::Free } else { Stage::Held }
    }

    /// The tokens that may come next; `None` for all.
    pub fn allowed(&self) -> Option<&Arc<TokenMask>> {
        self.allowed.as_ref()
    }

    /// True once the form is complete and nothing can follow.
    pub fn is_complete(&self) -> bool {
        self.stage == Stage::Held && self.matcher.is_stopped()
    }

    /// `token` was drawn. Not for the token that ends the answer.
    ///
    /// # Errors
    /// When the grammar cannot go on.
    pub fn accept(&mut self, token: u32) -> Result<(), GrammarError> {
        match self.stage {
            Stage::Begun if self.alphabet.think == Some(token) => self.stage = Stage::Thinking,
            Stage::Begun | Stage::Thought if self.trigger.is_some() => self.watch(token),
            Stage::Thought if self.alphabet.line_breaks.contains(&token) => self.stage = Stage::Held,
            Stage::Begun | Stage::Thought | Stage::Held => self.consume(token)?,
            Stage::Thinking => {
                if self.sees(token, THINK_CLOSE) {
                    self.stage = Stage::Thought;
                }
            }
            Stage::Free => self.watch(token),
        }
        self.allowed = self.mask()?;
        Ok(())
    }

    fn consume(&mut self, token: u32) -> Result<(), GrammarError> {
        self.stage = Stage::Held;
        self.matcher.consume_token(token).map_err(wrong)?;
        if let (true, Some(fresh)) = (self.matcher.is_stopped(), &self.fresh) {
            self.matcher = fresh.deep_clone();
            self.stage = Stage::Free;
        }
        Ok(())
    }

    fn watch(&mut self, token: u32) {
        let trigger = self.trigger.unwrap_or_default();
        self.stage = if self.sees(token, trigger.as_bytes()) { Stage::Held } else { Stage::Free };
    }

    /// Whether the text ends in `marker`, with this token.
    fn sees(&mut self, token: u32, marker: &[u8]) -> bool {
        self.tail.extend_from_slice(self.alphabet.tokenizer.bytes(token));
        let seen = self.tail.ends_with(marker);
        let kept = if seen { 0 } else { self.tail.len().min(marker.len()) };
        self.tail.drain(..self.tail.len() - kept);
        seen
    }

    fn mask(&mut self) -> Result<Option<Arc<TokenMask>>, GrammarError> {
        let more: &[u32] = match self.stage {
            Stage::Free => return Ok(None),
            Stage::Thinking => return Ok(Some(self.alphabet.unended.clone())),
            Stage::Begun | Stage::Thought if self.trigger.is_some() => return Ok(None),
            Stage::Begun => self.alphabet.think.as_slice(),
            Stage::Thought => &self.alphabet.line_breaks,
            Stage::Held => &[],
        };
        let found = self.matcher.compute_mask_or_eos().map_err(wrong)?;
        let mut mask = TokenMask::from_halves(found.as_slice(), self.alphabet.vocabulary);
        more.iter().for_each(|&id| mask.allow(id));
        Ok(Some(Arc::new(mask)))
    }
}

#[allow(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn wrong(error: impl ToString) -> GrammarError {
    GrammarError(super::first_line(&error.to_string()))
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").field("trigger", &self.trigger).field("stage", &self.stage).finish_non_exhaustive()
    }
}
