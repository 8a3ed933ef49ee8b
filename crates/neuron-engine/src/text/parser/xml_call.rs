//! `<function=name><parameter=x>value</parameter>…</function>`.

use serde_json::Value;

use super::marker::undecided;
use super::tool_call::{Head, Progress};
use super::tools::Tools;
use super::{Piece, arguments_piece};

pub(super) const OPEN: &str = "<function=";
const CLOSE: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_CLOSE: &str = "</parameter>";

/// What the beginning of a call's text tells. More text never changes an answer other than [`Head::Undecided`].
pub(super) fn head(text: &str) -> Head {
    let begun = text.trim_start();
    let Some(rest) = begun.strip_prefix(OPEN) else { return wait_if(OPEN.starts_with(begun)) };
    let Some(end) = rest.find(['>', '<', '\n']) else { return Head::Undecided };
    let name = rest[..end].trim();
    if name.is_empty() || !rest[end..].starts_with('>') {
        return Head::Never;
    }
    let behind = rest[end + 1..].trim_start();
    if behind.starts_with(PARAMETER) || behind.starts_with(CLOSE) {
        return Head::Named { name: name.to_owned(), arguments: text.len() - behind.len() };
    }
    wait_if(may_become_next(behind))
}

fn wait_if(undecided: bool) -> Head {
    if undecided { Head::Undecided } else { Head::Never }
}

fn may_become_next(text: &str) -> bool {
    PARAMETER.starts_with(text) || CLOSE.starts_with(text)
}

/// A call whose function is known. Its arguments become JSON as they come: texts character by character, other values when they are
/// whole. A call that breaks off keeps what was said, and its arguments are never closed.
#[derive(Debug)]
pub(super) struct XmlCall {
    function: String,
    place: Place,
    /// Parameters begun so far.
    parameters: usize,
}

#[derive(Debug)]
enum Place {
    /// Before a parameter, or at the end.
    Next,
    /// In a parameter's name.
    Name,
    Value(ParameterValue),
}

#[derive(Debug)]
struct ParameterValue {
    parameter: String,
    /// The value is a text whatever it says, and is handed out as it comes.
    is_text: bool,
    /// Nothing of it was seen.
    fresh: bool,
    /// Where no closing tag that counts starts before.
    searched: usize,
}

impl XmlCall {
    /// Behind the function's opening tag.
    pub(super) fn new(function: String) -> Self {
        Self { function, place: Place::Next, parameters: 0 }
    }

    /// Takes what belongs to the call from the front of `held`.
    pub(super) fn read(&mut self, held: &mut String, tools: &Tools, pieces: &mut Vec<Piece>) -> Progress {
        loop {
            let (words, progress) = self.step(held, tools);
            pieces.extend(arguments_piece(words));
            if let Some(progress) = progress {
                return progress;
            }
        }
    }

    /// `None` for the progress when there may be more to take.
    fn step(&mut self, held: &mut String, tools: &Tools) -> (String, Option<Progress>) {
        match &mut self.place {
            Place::Next => match held.trim_start().strip_prefix(PARAMETER).map(str::to_owned) {
                Some(rest) => {
                    *held = rest;
                    self.place = Place::Name;
                    (String::new(), None)
                }
                None => {
                    // Only the closing tag is left: whoever led here saw one of the two.
                    let end = held.len() - held.trim_start().len() + CLOSE.len();
                    held.drain(..end);
                    let words = if self.parameters == 0 { "{}" } else { "}" };
                    (words.to_owned(), Some(Progress::Over { closed: false }))
                }
            },
            Place::Name => {
                let Some((name, rest)) = held.split_once('>') else { return (String::new(), Some(Progress::More)) };
                let (parameter, rest) = (name.trim().to_owned(), rest.to_owned());
                let is_text = tools.is_text(&self.function, &parameter);
                let key = format!("{}{}:{}", self.before_parameter(), quoted(&parameter), if is_text { "\"" } else { "" });
                *held = rest;
                self.parameters += 1;
                self.place = Place::Value(ParameterValue { parameter, is_text, fresh: true, searched: 0 });
                (key, None)
            }
            Place::Value(value) => match value.read(held) {
                ValueEnd::Open(text) => (text, Some(Progress::More)),
                ValueEnd::End(text) => {
                    let words = value.ending(&self.function, &text, tools);
                    self.place = Place::Next;
                    (words, None)
                }
            },
        }
    }

    fn before_parameter(&self) -> char {
        if self.parameters == 0 { '{' } else { ',' }
    }

    /// The answer ended within the call.
    pub(super) fn finish(&self, held: &mut String, tools: &Tools) -> Option<Piece> {
        let rest = std::mem::take(held);
        let words = match &self.place {
            Place::Next => String::new(),
            Place::Name => format!("{}\"{}", self.before_parameter(), escaped(&rest)),
            Place::Value(value) => match value.ended(&rest) {
                Some(text) => value.ending(&self.function, text, tools),
                None => format!("{}{}", if value.is_text { "" } else { "\"" }, escaped(&rest)),
            },
        };
        arguments_piece(words)
    }
}

enum ValueEnd {
    /// More may come; what is certain of a text.
    Open(String),
    /// The value's last words.
    End(String),
}

impl ParameterValue {
    /// A closing tag ends the value where another parameter or the function's end follows. A value may hold such tags itself. The line break
    /// behind the opening tag and the one before the closing tag belong to the form.
    fn read(&mut self, held: &mut String) -> ValueEnd {
        if self.fresh && !held.is_empty() {
            self.fresh = false;
            held.drain(..usize::from(held.starts_with('\n')));
        }
        loop {
            let Some(at) = held[self.searched..].find(PARAMETER_CLOSE).map(|at| self.searched + at) else {
                let certain = self.searched + undecided(&held[self.searched..], &[PARAMETER_CLOSE]);
                return self.open(held, certain);
            };
            let behind = held[at + PARAMETER_CLOSE.len()..].trim_start();
            if behind.starts_with(PARAMETER) || behind.starts_with(CLOSE) {
                let text = without_line_break(&held[..at]).to_owned();
                held.drain(..held.len() - behind.len());
                return ValueEnd::End(text);
            }
            if may_become_next(behind) {
                return self.open(held, at);
            }
            self.searched = at + PARAMETER_CLOSE.len();
        }
    }

    fn open(&mut self, held: &mut String, certain: usize) -> ValueEnd {
        if !self.is_text {
            self.searched = certain;
            return ValueEnd::Open(String::new());
        }
        let certain = without_line_break(&held[..certain]).len();
        self.searched = 0;
        ValueEnd::Open(escaped(&held.drain(..certain).collect::<String>()))
    }

    /// What ends the value in JSON.
    fn ending(&self, function: &str, text: &str, tools: &Tools) -> String {
        if self.is_text { escaped(text) + "\"" } else { tools.value(function, &self.parameter, text).to_string() }
    }

    /// The value, where only what follows its closing tag is missing.
    fn ended<'a>(&self, rest: &'a str) -> Option<&'a str> {
        let (value, behind) = rest.rsplit_once(PARAMETER_CLOSE)?;
        may_become_next(behind.trim_start()).then(|| without_line_break(value))
    }
}

fn without_line_break(value: &str) -> &str {
    value.strip_suffix('\n').unwrap_or(value)
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// As inside the quotes of a JSON string; so a text may be escaped piece by piece.
fn escaped(text: &str) -> String {
    let quoted = quoted(text);
    quoted[1..quoted.len() - 1].to_owned()
}
