//! Calls that are the whole answer.

use super::json_call::{self, JsonCall};
use super::tool_call::{Head, Progress};
use super::tools::Tools;
use super::{Call, Piece, text_piece};

/// Reads an answer that begins as a call does; lets any other pass. Calls of functions that nobody offered are text: an answer in JSON may
/// have the same keys.
#[derive(Debug)]
pub(super) struct BareJsonParser {
    tools: Tools,
    /// Not handed out yet.
    held: String,
    place: Place,
    /// A call was read; before another one, separators may stand.
    called: bool,
}

#[derive(Debug)]
enum Place {
    /// At what may be a call.
    Before,
    Call(JsonCall),
    Text,
}

/// Keys that a call can begin with.
const FIRST_KEYS: [&str; 4] = ["\"name\"", "\"type\"", "\"parameters\"", "\"arguments\""];

impl BareJsonParser {
    pub(super) fn new(tools: Tools) -> Self {
        Self { tools, held: String::new(), place: Place::Before, called: false }
    }

    pub(super) fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.step(&mut pieces) {}
        pieces
    }

    /// False when more text is needed.
    fn step(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match &mut self.place {
            Place::Text => {
                pieces.extend(text_piece(std::mem::take(&mut self.held)));
                false
            }
            Place::Call(call) => match call.read(&mut self.held, pieces) {
                Progress::More => false,
                Progress::Over { .. } => {
                    self.place = Place::Before;
                    true
                }
            },
            Place::Before => self.step_before(pieces),
        }
    }

    fn step_before(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let begun = self.begun();
        if !may_be_call(begun) {
            self.place = Place::Text;
            return true;
        }
        match json_call::head(begun) {
            Head::Named { name, arguments } if self.tools.offer(&name) => {
                self.held.drain(..self.held.len() - begun.len() + arguments);
                (self.place, self.called) = (Place::Call(JsonCall::new(None)), true);
                pieces.push(Piece::Call(name));
                true
            }
            Head::Named { .. } | Head::Never => {
                self.place = Place::Text;
                true
            }
            // What cannot be read as it comes is read at the end.
            Head::Undecided | Head::Whole => false,
        }
    }

    pub(super) fn finish(&mut self) -> Vec<Piece> {
        if let Place::Call(call) = &self.place {
            return call.finish(&mut self.held).into_iter().collect();
        }
        let only_separators = self.called && self.begun().is_empty();
        let calls = json_call::read_all(self.begun().trim_end()).filter(|calls| calls.iter().all(|call| self.tools.offer(&call.name)));
        let held = std::mem::take(&mut self.held);
        match calls {
            Some(calls) if only_separators || !calls.is_empty() => calls.into_iter().flat_map(Call::pieces).collect(),
            _ => text_piece(held).into_iter().collect(),
        }
    }

    /// What is held, from where a call may begin.
    fn begun(&self) -> &str {
        self.held.trim_start_matches(|c: char| c.is_whitespace() || self.called && matches!(c, ';' | ','))
    }
}

fn may_be_call(text: &str) -> bool {
    let Some(inside) = text.strip_prefix('{').map(str::trim_start) else { return text.is_empty() };
    FIRST_KEYS.iter().any(|key| inside.starts_with(key) || key.starts_with(inside))
}
