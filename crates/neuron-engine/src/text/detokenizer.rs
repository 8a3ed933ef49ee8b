//! Tokens to text as they come, in whole characters.

use std::sync::Arc;

use super::tokenizer::{Spelling, Tokenizer, byte_token};

/// One answer's text. All pieces together equal [`Tokenizer::decode`] of all ids, whatever the ids are; the cost of a token does
/// not grow with the answer.
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Decoding is concatenation: only the bytes of an incomplete character wait.
    Bytes(Vec<u8>),
    /// The text of a token depends on its neighbours: decode it behind the tokens that came just before.
    Window {
        /// Tokens already handed out, as context; their text is not empty, except at the start.
        context: Vec<u32>,
        /// Tokens not handed out yet.
        pending: Vec<u32>,
    },
}

impl Detokenizer {
    /// For a new answer. `skip_special` as in [`Tokenizer::decode`].
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        let state = match tokenizer.spelling() {
            Spelling::ByteLevel => State::Bytes(Vec::new()),
            Spelling::WordPiece | Spelling::Metaspace => State::Window { context: Vec::new(), pending: Vec::new() },
        };
        Self { tokenizer, skip_special, state }
    }

    /// The characters that this token completes; often none, sometimes several.
    pub fn push(&mut self, id: u32) -> String {
        if self.skip_special && self.tokenizer.is_special(id) {
            return String::new();
        }
        match &mut self.state {
            State::Bytes(waiting) => {
                waiting.extend_from_slice(self.tokenizer.bytes(id));
                complete_characters(waiting)
            }
            State::Window { context, pending } => {
                let Some(token) = self.tokenizer.token(id) else { return String::new() };
                pending.push(id);
                // A run of byte tokens is valid or replaced as a whole, so it waits for its end.
                if byte_token(&token).is_some() {
                    return String::new();
                }
                hand_out(&self.tokenizer, context, pending)
            }
        }
    }

    /// The rest, with U+FFFD for a character that was never completed.
    pub fn flush(&mut self) -> String {
        match &mut self.state {
            State::Bytes(waiting) => String::from_utf8_lossy(&std::mem::take(waiting)).into_owned(),
            State::Window { context, pending } => hand_out(&self.tokenizer, context, pending),
        }
    }
}

/// Takes everything but an unfinished last character; invalid bytes become U+FFFD as in `from_utf8_lossy`.
fn complete_characters(waiting: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut done = 0;
    for chunk in waiting.utf8_chunks() {
        text.push_str(chunk.valid());
        done += chunk.valid().len();
        let invalid = chunk.invalid();
        let at_end = done + invalid.len() == waiting.len();
        if invalid.is_empty() || (at_end && may_continue(invalid)) {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        done += invalid.len();
    }
    waiting.drain(..done);
    text
}

/// Whether these bytes are the beginning of a character, rather than wrong.
fn may_continue(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.error_len().is_none())
}

/// The text of `pending` behind `context`; afterwards it is the context.
fn hand_out(tokenizer: &Tokenizer, context: &mut Vec<u32>, pending: &mut Vec<u32>) -> String {
    let before = tokenizer.decode(context, false);
    context.extend_from_slice(pending);
    let with_context = tokenizer.decode(context, false);
    // At the start of a text some decoders drop a leading space, so a context without text would lose the next one's.
    if !tokenizer.decode(pending, false).is_empty() {
        std::mem::swap(context, pending);
    }
    pending.clear();
    with_context.strip_prefix(before.as_str()).unwrap_or(&with_context).to_owned()
}
