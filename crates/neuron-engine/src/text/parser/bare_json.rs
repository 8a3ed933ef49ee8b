//! Calls that are the whole answer.

use super::json_call;
use super::tools::Tools;
use super::{Piece, text_piece};

/// Holds an answer that begins as a call does until its end; lets any other pass.
#[derive(Debug)]
pub(super) struct BareJsonParser {
    tools: Tools,
    /// `None` once the answer is known to be text.
    held: Option<String>,
}

/// Keys that a call can begin with.
const FIRST_KEYS: [&str; 4] = ["\"name\"", "\"type\"", "\"parameters\"", "\"arguments\""];

impl BareJsonParser {
    pub(super) fn new(tools: Tools) -> Self {
        Self { tools, held: Some(String::new()) }
    }

    pub(super) fn push(&mut self, text: &str) -> Vec<Piece> {
        let Some(held) = &mut self.held else { return text_piece(text).into_iter().collect() };
        held.push_str(text);
        if may_be_call(held) {
            return Vec::new();
        }
        self.held.take().and_then(text_piece).into_iter().collect()
    }

    /// Calls of functions that nobody offered are text: an answer in JSON may have the same keys.
    pub(super) fn finish(&mut self) -> Vec<Piece> {
        let held = self.held.take().unwrap_or_default();
        match json_call::read_all(held.trim()) {
            Some(calls) if !calls.is_empty() && calls.iter().all(|call| self.tools.offer(&call.name)) => {
                calls.into_iter().map(Piece::Call).collect()
            }
            _ => text_piece(held).into_iter().collect(),
        }
    }
}

fn may_be_call(text: &str) -> bool {
    let text = text.trim_start();
    let Some(inside) = text.strip_prefix('{').map(str::trim_start) else { return text.is_empty() };
    FIRST_KEYS.iter().any(|key| inside.starts_with(key) || key.starts_with(inside))
}
