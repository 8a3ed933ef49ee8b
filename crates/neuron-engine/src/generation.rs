//! One generation as its client sees it: tokens from the engine become text, until a stop text, the end, or nobody listens.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use cortex_core::harness::{TokenChoice, TokenLogprob};
use cortex_core::{EventStream, FinishReason, GenerateEvent, HarnessError, Usage};
use futures::StreamExt;
use futures::stream::unfold;
use tokio::sync::mpsc;

use crate::sampler::Sampled;
use crate::text::detokenizer::Detokenizer;
use crate::text::parser::{AnswerParser, Piece, text_piece};
use crate::text::stop::{StopMatcher, StopOutcome};
use crate::text::tokenizer::Tokenizer;

/// What the engine says of one sequence.
#[derive(Debug)]
pub enum TokenEvent {
    /// The prompt is in the cache.
    Started {
        /// Tokens found in the prefix cache.
        cached_tokens: u32,
        /// All tokens of the prompt but the first, if they were to be scored; otherwise none.
        scores: Vec<Sampled>,
    },
    /// One more token of the answer.
    Token(Sampled),
    /// The end. `ended_by_token` counts the end-of-turn token, which is no part of the text.
    Finish {
        /// Why.
        reason: FinishReason,
        /// An end-of-turn token was drawn.
        ended_by_token: bool,
    },
    /// The node gave up.
    Failed(HarnessError),
}

/// The engine's side and the client's side of one generation. Dropping the receiver cancels it.
///
/// The channel holds a whole answer: the engine never waits for a slow reader, and memory stays bounded by `max_tokens`.
pub fn channel(max_tokens: usize) -> (mpsc::Sender<TokenEvent>, mpsc::Receiver<TokenEvent>) {
    mpsc::channel(max_tokens + 2)
}

/// What a generation tells of its prompt.
#[derive(Clone, Copy, Debug)]
pub struct PromptFacts {
    /// How many tokens it has.
    pub tokens: u32,
    /// Its first token, if the client wants to hear how probable the others are.
    pub scored_after: Option<u32>,
}

/// Turns token events into the events of [`EventStream`].
pub fn event_stream(
    tokens: mpsc::Receiver<TokenEvent>,
    tokenizer: Arc<Tokenizer>,
    prompt: PromptFacts,
    stop: Vec<String>,
    parser: AnswerParser,
) -> EventStream {
    let state = Generation {
        tokens: Some(tokens),
        detokenizer: Detokenizer::new(tokenizer.clone(), true),
        tokenizer,
        stop: StopMatcher::new(stop),
        parser,
        calls: 0,
        scored_after: prompt.scored_after,
        usage: Usage { prompt_tokens: prompt.tokens, ..Usage::default() },
        ready: VecDeque::new(),
    };
    unfold(state, |mut state| async move { state.next().await.map(|event| (event, state)) }).boxed()
}

struct Generation {
    /// `None` once the end was seen or a stop text matched: dropping it is what cancels the sequence.
    tokens: Option<mpsc::Receiver<TokenEvent>>,
    tokenizer: Arc<Tokenizer>,
    detokenizer: Detokenizer,
    stop: StopMatcher,
    parser: AnswerParser,
    /// Tool calls so far.
    calls: u32,
    scored_after: Option<u32>,
    usage: Usage,
    ready: VecDeque<Result<GenerateEvent, HarnessError>>,
}

impl Generation {
    async fn next(&mut self) -> Option<Result<GenerateEvent, HarnessError>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let event = self.tokens.as_mut()?.recv().await;
            self.take(event);
        }
    }

    fn take(&mut self, event: Option<TokenEvent>) {
        match event {
            Some(TokenEvent::Started { cached_tokens, scores }) => {
                self.usage.cached_tokens = cached_tokens;
                self.ready.push_back(Ok(GenerateEvent::Started { prompt_tokens: self.usage.prompt_tokens, cached_tokens }));
                if let Some(first) = self.scored_after {
                    let rest = scores.iter().flat_map(|score| self.logprobs(score)).collect();
                    self.ready.push_back(Ok(GenerateEvent::Prompt { first: self.text_of(first), rest }));
                }
            }
            Some(TokenEvent::Token(sampled)) => self.token(&sampled),
            Some(TokenEvent::Finish { reason, ended_by_token }) => {
                self.usage.completion_tokens += u32::from(ended_by_token);
                self.end(reason);
            }
            Some(TokenEvent::Failed(error)) => self.fail(error),
            None => self.fail(HarnessError::ShuttingDown),
        }
    }

    fn token(&mut self, sampled: &Sampled) {
        self.usage.completion_tokens += 1;
        let logprobs = self.logprobs(sampled);
        let text = self.detokenizer.push(sampled.token);
        let thought = self.parser.is_thinking();
        let pieces = self.parser.push(&text);
        // The tags count as well: nothing of them is seen in the answer.
        self.usage.reasoning_tokens += u32::from(thought || self.parser.is_thinking());
        if let Some(stop) = self.hear(pieces, logprobs) {
            self.finish(FinishReason::Stop, Some(stop));
        }
    }

    /// The last, perhaps incomplete, characters can still complete a stop text.
    fn end(&mut self, reason: FinishReason) {
        let tail = self.detokenizer.flush();
        let mut pieces = self.parser.push(&tail);
        pieces.extend(self.parser.finish());
        match self.hear(pieces, Vec::new()) {
            Some(stop) => self.finish(FinishReason::Stop, Some(stop)),
            None => {
                let held = self.stop.flush();
                self.say(text_piece(held).into_iter().collect(), Vec::new());
                self.finish(reason, None);
            }
        }
    }

    /// Says what comes before a stop text, and gives it if there is one. Only the answer's own text can hold one: a thought or a call that
    /// happens to is none.
    fn hear(&mut self, pieces: Vec<Piece>, logprobs: Vec<TokenLogprob>) -> Option<String> {
        let mut said = Vec::new();
        let mut stopped = None;
        for piece in pieces {
            let text = match piece {
                Piece::Text(text) => text,
                other => {
                    // What was held back as the beginning of a stop text is none, now that something else follows.
                    said.extend(text_piece(self.stop.flush()));
                    said.push(other);
                    continue;
                }
            };
            match self.stop.push(&text) {
                StopOutcome::Text(text) => said.extend(text_piece(text)),
                StopOutcome::Stopped { text_before, stop } => {
                    said.extend(text_piece(text_before));
                    stopped = Some(stop);
                    break;
                }
            }
        }
        self.say(said, logprobs);
        stopped
    }

    /// The log-probabilities travel with the first text, or with an empty one.
    fn say(&mut self, mut pieces: Vec<Piece>, mut logprobs: Vec<TokenLogprob>) {
        if !logprobs.is_empty() && pieces.iter().all(|piece| matches!(piece, Piece::Call(_) | Piece::Arguments(_))) {
            pieces.insert(0, Piece::Text(String::new()));
        }
        for piece in pieces {
            let event = match piece {
                Piece::Text(text) => GenerateEvent::Text { text, logprobs: std::mem::take(&mut logprobs) },
                Piece::Reasoning(text) => GenerateEvent::Reasoning { text, logprobs: std::mem::take(&mut logprobs) },
                Piece::Call(name) => {
                    self.calls += 1;
                    GenerateEvent::ToolCall { index: self.calls - 1, id: call_id(), name }
                }
                Piece::Arguments(text) => GenerateEvent::ToolArguments { index: self.calls.saturating_sub(1), text },
            };
            self.ready.push_back(Ok(event));
        }
    }

    fn finish(&mut self, reason: FinishReason, stop: Option<String>) {
        let reason = if reason == FinishReason::Stop && self.calls > 0 { FinishReason::ToolCalls } else { reason };
        self.ready.push_back(Ok(GenerateEvent::Finish { reason, stop, usage: self.usage }));
        self.tokens = None;
    }

    fn fail(&mut self, error: HarnessError) {
        self.ready.push_back(Err(error));
        self.tokens = None;
    }

    fn logprobs(&self, sampled: &Sampled) -> Vec<TokenLogprob> {
        let choice = |id: u32, logprob: f32| TokenChoice { id, text: self.text_of(id), bytes: self.tokenizer.token_bytes(id), logprob };
        let entry = sampled.logprob.as_ref().map(|found| TokenLogprob {
            chosen: choice(sampled.token, found.chosen),
            top: found.top.iter().map(|&(id, logprob)| choice(id, logprob)).collect(),
        });
        entry.into_iter().collect()
    }

    fn text_of(&self, id: u32) -> String {
        String::from_utf8_lossy(&self.tokenizer.token_bytes(id)).into_owned()
    }
}

/// `call_` and 24 hexadecimal digits that no other call has.
fn call_id() -> String {
    let random = RandomState::new();
    format!("call_{:016x}{:08x}", random.hash_one(0), random.hash_one(1) as u32)
}
