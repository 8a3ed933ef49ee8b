//! `<think>…</think>` before the answer.

use cortex_core::ChatPrompt;

use super::marker::undecided;
use super::{Piece, text_piece};
use crate::text::chat_template::last_text;

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// What the prompt's end says about the answer's beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The model may begin with a thought.
    Fresh,
    /// The prompt ends inside a thought.
    Thinking,
    /// The model goes on with an answer that has begun.
    Speaking,
}

impl Start {
    /// Reads it off the rendered prompt; for a continued message, off that message, because only there is its text not somebody else's.
    pub fn of_prompt(prompt: &ChatPrompt, rendered: &str) -> Self {
        if !prompt.continue_final_message {
            return if rendered.trim_end().ends_with(OPEN) { Self::Thinking } else { Self::Fresh };
        }
        let said = last_text(prompt).unwrap_or_default();
        match (said.rfind(OPEN), said.rfind(CLOSE)) {
            (Some(open), close) if close.is_none_or(|close| close < open) => Self::Thinking,
            _ if said.trim().is_empty() => Self::Fresh,
            _ => Self::Speaking,
        }
    }
}

/// Tells thoughts from text. Only a `<think>` that the answer begins with opens one: later it is a word like any other. Line breaks
/// beside the markers belong to them.
#[derive(Debug)]
pub(super) struct ThinkParser {
    state: State,
    held: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but space so far.
    Fresh,
    /// Inside a thought that says nothing yet.
    Opened,
    /// Inside a thought.
    Thinking,
    /// Just behind `</think>`.
    Closed,
    /// In the answer.
    Speaking,
}

impl ThinkParser {
    pub(super) fn new(start: Start) -> Self {
        let state = match start {
            Start::Fresh => State::Fresh,
            Start::Thinking => State::Opened,
            Start::Speaking => State::Speaking,
        };
        Self { state, held: String::new() }
    }

    pub(super) fn is_thinking(&self) -> bool {
        matches!(self.state, State::Opened | State::Thinking)
    }

    pub(super) fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        loop {
            let before = self.state;
            pieces.extend(self.step());
            if self.state == before {
                return pieces;
            }
        }
    }

    /// The end, perhaps inside a thought.
    pub(super) fn finish(&mut self) -> Option<Piece> {
        let rest = std::mem::take(&mut self.held);
        match self.state {
            State::Opened | State::Thinking => reasoning(rest),
            State::Closed => None,
            State::Fresh | State::Speaking => text_piece(rest),
        }
    }

    fn step(&mut self) -> Option<Piece> {
        match self.state {
            State::Fresh => self.open(),
            State::Opened | State::Closed => self.skip_line_breaks(),
            State::Thinking => return self.think(),
            State::Speaking => return text_piece(std::mem::take(&mut self.held)),
        }
        None
    }

    fn open(&mut self) {
        let begun = self.held.trim_start();
        if let Some(thought) = begun.strip_prefix(OPEN) {
            self.held = thought.to_owned();
            self.state = State::Opened;
        } else if !OPEN.starts_with(begun) {
            self.state = State::Speaking;
        }
    }

    fn skip_line_breaks(&mut self) {
        self.held = self.held.trim_start_matches('\n').to_owned();
        if !self.held.is_empty() {
            self.state = if self.state == State::Opened { State::Thinking } else { State::Speaking };
        }
    }

    fn think(&mut self) -> Option<Piece> {
        if let Some((thought, rest)) = self.held.split_once(CLOSE) {
            let thought = thought.trim_end_matches('\n').to_owned();
            self.held = rest.to_owned();
            self.state = State::Closed;
            return reasoning(thought);
        }
        let certain = self.held[..undecided(&self.held, &[CLOSE])].trim_end_matches('\n').len();
        let held = self.held.split_off(certain);
        reasoning(std::mem::replace(&mut self.held, held))
    }
}

fn reasoning(text: String) -> Option<Piece> {
    Some(text).filter(|text| !text.is_empty()).map(Piece::Reasoning)
}
