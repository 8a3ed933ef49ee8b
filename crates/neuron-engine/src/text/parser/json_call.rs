//! `{"name": …, "arguments": {…}}`, where Llama says `parameters`.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::json_object::{JsonObject, Reach};
use super::tool_call::{Head, Progress, Verdict};
use super::{Call, Piece, arguments_piece};

/// As the model writes it; other fields do not matter.
#[derive(Deserialize)]
struct Written<'a> {
    name: String,
    #[serde(borrow, default, alias = "parameters")]
    arguments: Option<&'a RawValue>,
}

/// Reads a text that should be one call and nothing else.
pub(super) fn read(text: &str) -> Verdict {
    match serde_json::from_str::<Written<'_>>(text).ok().and_then(call) {
        Some(call) => Verdict::Call(call),
        None if ends_inside_string(text) => Verdict::Unfinished,
        None => Verdict::Malformed,
    }
}

/// Reads calls one after the other, perhaps with `;` or `,` between them; `None` if there is anything else.
pub(super) fn read_all(mut text: &str) -> Option<Vec<Call>> {
    let mut calls = Vec::new();
    while !text.is_empty() {
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<Written<'_>>();
        calls.push(values.next()?.ok().and_then(call)?);
        text = text[values.byte_offset()..].trim_start_matches(|c: char| c.is_whitespace() || matches!(c, ';' | ','));
    }
    Some(calls)
}

fn call(written: Written<'_>) -> Option<Call> {
    let arguments = written.arguments.map_or("null", RawValue::get);
    let arguments = match arguments.as_bytes().first()? {
        b'{' => arguments.to_owned(),
        b'n' => "{}".to_owned(),
        // Some models write the object as a string once more.
        b'"' => serde_json::from_str(arguments).ok().filter(|text: &String| is_object(text))?,
        _ => return None,
    };
    (!written.name.is_empty()).then_some(Call { name: written.name, arguments })
}

fn is_object(text: &str) -> bool {
    serde_json::from_str::<Value>(text).is_ok_and(|value| value.is_object())
}

fn ends_inside_string(text: &str) -> bool {
    let (mut inside, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            b'"' if !escaped => inside = !inside,
            _ => {}
        }
        escaped = inside && byte == b'\\' && !escaped;
    }
    inside
}

/// How far the fields before a call's arguments are looked at; a call with more before them is read when it is whole.
const HEAD_BYTES_MAX: usize = 1024;

/// What the beginning of a call's text tells. More text never changes an answer other than [`Head::Undecided`].
pub(super) fn head(text: &str) -> Head {
    let within = text.floor_char_boundary(HEAD_BYTES_MAX);
    let fields = Fields { text: &text[..within], at: 0 };
    match fields.head() {
        Ok(named) => named,
        Err(Head::Undecided) if within < text.len() => Head::Whole,
        Err(other) => other,
    }
}

/// The fields of an object whose end may be missing.
struct Fields<'a> {
    text: &'a str,
    at: usize,
}

impl Fields<'_> {
    fn head(mut self) -> Result<Head, Head> {
        let mut name = None;
        self.expect('{')?;
        loop {
            let key = self.string()?;
            self.expect(':')?;
            match (key.as_str(), &name) {
                ("name", None) => name = Some(self.string()?).filter(|name| !name.is_empty()),
                ("arguments" | "parameters", Some(known)) if self.peek()? == '{' => {
                    return Ok(Head::Named { name: known.clone(), arguments: self.at });
                }
                ("name" | "arguments" | "parameters", _) => return Err(Head::Whole),
                _ => self.scalar()?,
            }
            self.expect(',')?;
        }
    }

    fn peek(&mut self) -> Result<char, Head> {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\r', '\n']).len();
        self.text[self.at..].chars().next().ok_or(Head::Undecided)
    }

    fn expect(&mut self, wanted: char) -> Result<(), Head> {
        if self.peek()? != wanted {
            return Err(Head::Whole);
        }
        self.at += wanted.len_utf8();
        Ok(())
    }

    fn string(&mut self) -> Result<String, Head> {
        let start = (self.peek()?, self.at).1;
        self.expect('"')?;
        let mut escaped = false;
        let end = self.text[self.at..].find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        self.at += end.ok_or(Head::Undecided)? + 1;
        serde_json::from_str(&self.text[start..self.at]).map_err(|_| Head::Whole)
    }

    /// A value without an inside.
    fn scalar(&mut self) -> Result<(), Head> {
        match self.peek()? {
            '"' => self.string().map(drop),
            '{' | '[' => Err(Head::Whole),
            _ => {
                self.at += self.text[self.at..].find([',', '}']).ok_or(Head::Undecided)?;
                Ok(())
            }
        }
    }
}

/// A call whose arguments have begun. They are handed out as they come, and so the call stands whatever follows: arguments that are no
/// JSON, or that break off, are the model's words as far as they go.
#[derive(Debug)]
pub(super) struct JsonCall {
    /// The tag that ends the call.
    close: Option<&'static str>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Arguments(JsonObject),
    /// Just behind the arguments.
    Behind,
    /// In fields behind the arguments, which do not matter.
    Fields(JsonObject),
    /// At the end of the call's object. A brace too many, or too few, says nothing.
    Braces,
}

impl JsonCall {
    pub(super) fn new(close: Option<&'static str>) -> Self {
        Self { close, place: Place::Arguments(JsonObject::default()) }
    }

    /// Takes what belongs to the call from the front of `held`.
    pub(super) fn read(&mut self, held: &mut String, pieces: &mut Vec<Piece>) -> Progress {
        loop {
            match &mut self.place {
                Place::Arguments(object) => {
                    let (end, reach) = object.read(held, self.close);
                    pieces.extend(arguments_piece(held.drain(..end).collect::<String>()));
                    match reach {
                        Reach::Open => return Progress::More,
                        Reach::Torn(tag) => return over(held, tag),
                        Reach::End => self.place = Place::Behind,
                    }
                }
                Place::Behind => match held.trim_start().chars().next() {
                    None => return Progress::More,
                    Some(',') => self.place = Place::Fields(JsonObject::inside()),
                    Some(_) => self.place = Place::Braces,
                },
                Place::Fields(object) => {
                    let (end, reach) = object.read(held, self.close);
                    held.drain(..end);
                    match reach {
                        Reach::Open => return Progress::More,
                        Reach::Torn(tag) => return over(held, tag),
                        Reach::End => self.place = Place::Braces,
                    }
                }
                Place::Braces => {
                    let Some(end) = held.find(|c: char| !c.is_whitespace() && c != '}') else { return Progress::More };
                    let braces = held[..end].rfind('}').map_or(0, |last| last + 1);
                    held.drain(..braces);
                    return Progress::Over { closed: false };
                }
            }
        }
    }

    /// The answer ended.
    pub(super) fn finish(&self, held: &mut String) -> Option<Piece> {
        let rest = std::mem::take(held);
        matches!(self.place, Place::Arguments(_)).then(|| arguments_piece(rest)).flatten()
    }
}

fn over(held: &mut String, tag: usize) -> Progress {
    held.drain(..tag);
    Progress::Over { closed: true }
}
