//! `<function=name><parameter=x>value</parameter>…</function>`.

use serde_json::{Map, Value};

use super::Call;
use super::tool_call::Verdict;
use super::tools::Tools;

pub(super) const OPEN: &str = "<function=";
pub(super) const CLOSE: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_CLOSE: &str = "</parameter>";

/// Reads a text that should be one call and nothing else.
pub(super) fn read(text: &str, tools: &Tools) -> Verdict {
    match call(text, tools) {
        Some(call) => Verdict::Call(call),
        None if inside_parameter(text) => Verdict::Unfinished,
        None => Verdict::Malformed,
    }
}

fn call(text: &str, tools: &Tools) -> Option<Call> {
    let (name, mut rest) = text.strip_prefix(OPEN)?.strip_suffix(CLOSE)?.split_once('>')?;
    let name = name.trim();
    let mut arguments = Map::new();
    while !rest.trim_start().is_empty() {
        let (parameter, behind) = rest.trim_start().strip_prefix(PARAMETER)?.split_once('>')?;
        let end = value_end(behind)?;
        let value = tools.value(name, parameter.trim(), without_line_breaks(&behind[..end]));
        arguments.insert(parameter.trim().to_owned(), value);
        rest = &behind[end + PARAMETER_CLOSE.len()..];
    }
    (!name.is_empty()).then(|| Call { name: name.to_owned(), arguments: Value::Object(arguments).to_string() })
}

/// Where a value ends: at the first closing tag that another parameter or the end follows. A value may hold such tags itself.
fn value_end(text: &str) -> Option<usize> {
    let mut ends = text.match_indices(PARAMETER_CLOSE).map(|(at, _)| at);
    ends.find(|at| {
        let behind = text[at + PARAMETER_CLOSE.len()..].trim_start();
        behind.is_empty() || behind.starts_with(PARAMETER) || behind == CLOSE
    })
}

/// The line break behind the opening tag and the one before the closing tag belong to the form.
fn without_line_breaks(value: &str) -> &str {
    let value = value.strip_prefix('\n').unwrap_or(value);
    value.strip_suffix('\n').unwrap_or(value)
}

fn inside_parameter(text: &str) -> bool {
    text.rfind(PARAMETER).is_some_and(|open| value_end(&text[open..]).is_none())
}
