//! Which way a model writes its calls, and the reader for it.

use serde_json::Value;

use super::bare_json::BareJsonParser;
use super::tagged::TaggedParser;
use super::tools::Tools;
use super::{Call, Piece};

/// The ways to write a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolForm {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>` (Qwen3, Hermes).
    TaggedJson,
    /// `<tool_call><function=name><parameter=x>…</parameter></function></tool_call>` (Qwen3-Coder); often without the outer tags.
    TaggedXml,
    /// The whole answer is `{"name": …, "parameters": {…}}` (Llama 3).
    BareJson,
}

impl ToolForm {
    /// The form that a template teaches its model, if any.
    pub fn of_template(source: &str) -> Option<Self> {
        let says = |word: &str| source.contains(word);
        if says("<function=") && says("<parameter=") {
            Some(Self::TaggedXml)
        } else if says("<tool_call>") {
            Some(Self::TaggedJson)
        } else if says(r#"{"name": "#) && says(r#""parameters": "#) {
            Some(Self::BareJson)
        } else {
            None
        }
    }
}

/// What the beginning of a call's text tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// More text must come.
    Undecided,
    /// A call of this function; where its arguments begin.
    Named { name: String, arguments: usize },
    /// Perhaps a call, to be read when it is whole.
    Whole,
    /// No call.
    Never,
}

/// Whether a call that has begun goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// More text must come.
    More,
    /// It has ended; with its closing tag, if `closed`.
    Over { closed: bool },
}

/// What the text of a call turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A call.
    Call(Call),
    /// Its end is still to come: the marker that was taken for it is part of an argument.
    Unfinished,
    /// No call.
    Malformed,
}

/// Tells calls from text.
#[derive(Debug)]
pub(super) enum ToolCallParser {
    Tagged(TaggedParser),
    Bare(BareJsonParser),
}

impl ToolCallParser {
    pub(super) fn new(form: ToolForm, tools: &[Value]) -> Self {
        let tools = Tools::new(tools);
        match form {
            ToolForm::BareJson => Self::Bare(BareJsonParser::new(tools)),
            ToolForm::TaggedJson | ToolForm::TaggedXml => Self::Tagged(TaggedParser::new(form, tools)),
        }
    }

    pub(super) fn push(&mut self, text: &str) -> Vec<Piece> {
        match self {
            Self::Tagged(parser) => parser.push(text),
            Self::Bare(parser) => parser.push(text),
        }
    }

    pub(super) fn finish(&mut self) -> Vec<Piece> {
        match self {
            Self::Tagged(parser) => parser.finish(),
            Self::Bare(parser) => parser.finish(),
        }
    }
}
