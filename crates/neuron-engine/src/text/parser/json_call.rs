//! `{"name": …, "arguments": {…}}`, where Llama says `parameters`.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::Call;
use super::tool_call::Verdict;

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
