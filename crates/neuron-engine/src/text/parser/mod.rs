//! What a model says beside plain text: thoughts and tool calls, read from the answer as it comes.
//!
//! ```text
//! answer -> think (Reasoning | text) -> tool_call (Call | Text)
//! ```
//!
//! Each machine holds back only what may still become one of its markers, and what it gives depends on the text only, never on how
//! it was cut into pieces. Arguments come out while they are written, as soon as function and form are certain. What is not well formed comes
//! out as the text that it is; from the first argument on, as arguments that end where the model's words do.

mod bare_json;
mod json_call;
mod json_object;
mod marker;
mod tagged;
mod think;
mod tool_call;
mod tools;
mod xml_call;

pub(super) use marker::undecided;
pub use think::Start;
pub use tool_call::ToolForm;

use cortex_core::ChatPrompt;

use think::ThinkParser;
use tool_call::ToolCallParser;

/// One thing that the model said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// More of the answer's text; never empty.
    Text(String),
    /// More of a thought; never empty.
    Reasoning(String),
    /// A call of this function begins.
    Call(String),
    /// More of the arguments of the call that began last; never empty. Together they are a JSON object, unless the model did not write one;
    /// where it wrote JSON, they are exactly its words, so that the next turn's prompt repeats them.
    Arguments(String),
}

/// A call of a tool that was read whole.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Call {
    name: String,
    /// A JSON object as text.
    arguments: String,
}

impl Call {
    fn pieces(self) -> [Piece; 2] {
        [Piece::Call(self.name), Piece::Arguments(self.arguments)]
    }
}

/// What a chat template tells of how its model speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Markup {
    /// Thoughts stand between `<think>` and `</think>`.
    pub thinks: bool,
    /// How calls are written, if they are.
    pub calls: Option<ToolForm>,
}

impl Markup {
    /// Reads it off the template's text.
    pub fn of_template(source: &str) -> Self {
        Self { thinks: source.contains("<think>") || source.contains("</think>"), calls: ToolForm::of_template(source) }
    }
}

/// One answer's way from text to pieces. The default one leaves all text as it is.
#[derive(Debug, Default)]
pub struct AnswerParser {
    think: Option<ThinkParser>,
    calls: Option<ToolCallParser>,
}

impl AnswerParser {
    /// For the answer to `prompt`, which the template rendered as `rendered`. Calls are looked for only if tools were offered.
    pub fn new(markup: Markup, prompt: &ChatPrompt, rendered: &str) -> Self {
        let offered = prompt.tools.as_deref().filter(|tools| !tools.is_empty());
        Self {
            think: markup.thinks.then(|| ThinkParser::new(Start::of_prompt(prompt, rendered))),
            calls: markup.calls.zip(offered).map(|(form, tools)| ToolCallParser::new(form, tools)),
        }
    }

    /// The next piece of the answer.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        let pieces = match &mut self.think {
            Some(think) => think.push(text),
            None => text_piece(text).into_iter().collect(),
        };
        self.read_calls(pieces)
    }

    /// True inside a thought.
    pub fn is_thinking(&self) -> bool {
        self.think.as_ref().is_some_and(ThinkParser::is_thinking)
    }

    /// The answer ended: what was held back.
    pub fn finish(&mut self) -> Vec<Piece> {
        let rest = self.think.as_mut().and_then(ThinkParser::finish);
        let mut pieces = self.read_calls(rest.into_iter().collect());
        pieces.extend(self.calls.iter_mut().flat_map(ToolCallParser::finish));
        pieces
    }

    fn read_calls(&mut self, pieces: Vec<Piece>) -> Vec<Piece> {
        let Some(calls) = &mut self.calls else { return pieces };
        let read = |piece| match piece {
            Piece::Text(text) => calls.push(&text),
            other => vec![other],
        };
        pieces.into_iter().flat_map(read).collect()
    }
}

/// No piece for no text.
pub(crate) fn text_piece(text: impl Into<String>) -> Option<Piece> {
    Some(text.into()).filter(|text: &String| !text.is_empty()).map(Piece::Text)
}

fn arguments_piece(text: String) -> Option<Piece> {
    (!text.is_empty()).then_some(Piece::Arguments(text))
}

#[cfg(test)]
mod tests;
