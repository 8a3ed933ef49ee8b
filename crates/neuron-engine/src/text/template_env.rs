//! The Jinja that chat templates are written for: HF's environment on Python's Jinja2, rebuilt on minijinja.

use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, Value, escape_formatter};
use minijinja_contrib::pycompat;

use super::python::{self, JsonStyle};
use super::strftime::strftime;

/// Where `strftime_now` looks.
pub(super) type Clock = fn() -> SystemTime;

/// The source of an error that the template raised itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// An environment without templates.
pub(super) fn environment(clock: Clock) -> Environment<'static> {
    let mut env = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    env.set_syntax(syntax.build().expect("the default delimiters are valid"));
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_formatter(print);
    env.set_unknown_method_callback(method);
    env.add_filter("tojson", tojson);
    env.add_filter("string", |value: &Value| python::str(value));
    env.add_filter("trim", |value: &Value, chars: Option<&str>| strip(&python::str(value), chars, true, true).to_owned());
    // As Python sees it: text is a sequence, and None cannot be iterated over.
    env.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map)
    });
    env.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    env.add_function("raise_exception", |message: &Value| -> Result<Value, Error> {
        let message = python::str(message);
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    env.add_function("strftime_now", move |format: &str| strftime(clock(), format));
    env
}

/// HF marks assistant text for training with `{% generation %}`; for us it is a block that is always there.
pub(super) fn without_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        let Some(end) = tag.find("%}") else { break };
        let (tag, after) = tag.split_at(end);
        out.push_str(before);
        let word = tag.trim_start_matches("{%").trim_matches(|c: char| c.is_whitespace() || matches!(c, '-' | '+'));
        match word {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// A JSON value as a template sees it: integers exact, keys in order.
pub(super) fn from_json(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(b) => Value::from(*b),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::from(n),
            (_, Some(n)) => Value::from(n),
            _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(s) => Value::from(s.as_str()),
        serde_json::Value::Array(items) => items.iter().map(from_json).collect(),
        serde_json::Value::Object(map) => from_json_map(map),
    }
}

/// A JSON object as a template sees it.
pub(super) fn from_json_map(map: &serde_json::Map<String, serde_json::Value>) -> Value {
    Value::from_pairs(map.iter().map(|(key, value)| (key.as_str(), from_json(value))))
}

fn print(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Number | ValueKind::Seq | ValueKind::Map => out.write_str(&python::str(value)).map_err(Error::from),
        _ => escape_formatter(out, state, value),
    }
}

/// `json.dumps` with HF's default of leaving characters as they are.
#[expect(clippy::needless_pass_by_value, reason = "minijinja hands keyword arguments over by value")]
fn tojson(value: &Value, ensure_ascii: Option<bool>, kwargs: Kwargs) -> Result<String, Error> {
    let mut style = JsonStyle {
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.or(ensure_ascii).unwrap_or(false),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ..JsonStyle::default()
    };
    if let Some(indent) = kwargs.get::<Option<Value>>("indent")? {
        style.indent = match indent.as_str() {
            Some(text) => Some(text.to_owned()),
            None if indent.is_none() => None,
            None => Some(" ".repeat(usize::try_from(indent)?)),
        };
    }
    if style.indent.is_some() {
        style.item_separator = ",".into();
    }
    if let Some(separators) = kwargs.get::<Option<Vec<String>>>("separators")? {
        let [item, key] = <[String; 2]>::try_from(separators)
            .map_err(|_| Error::new(ErrorKind::InvalidOperation, "tojson: `separators` must be a pair of strings"))?;
        (style.item_separator, style.key_separator) = (item, key);
    }
    kwargs.assert_all_used()?;
    python::json_dumps(value, &style)
}

/// Methods of Python's types: those that minijinja's own set lacks or takes differently, then that set.
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match value.as_str().and_then(|text| str_method(text, name, args).transpose()) {
        Some(result) => result,
        None => pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// `None` when there is no such method here.
fn str_method(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            Value::from(strip(text, chars, name != "rstrip", name != "lstrip"))
        }
        "split" | "rsplit" => {
            let (separator, max, kwargs): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
            let separator = kwargs.get::<Option<&str>>("sep")?.or(separator);
            let max = kwargs.get::<Option<i64>>("maxsplit")?.or(max);
            kwargs.assert_all_used()?;
            let max = max.and_then(|max| usize::try_from(max).ok()).unwrap_or(usize::MAX);
            split(text, separator, max, name == "rsplit")?.into_iter().map(Value::from).collect()
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let found = if name == "partition" { text.split_once(separator) } else { text.rsplit_once(separator) };
            Value::from(match found {
                Some((before, after)) => (before, separator, after),
                None if name == "partition" => (text, "", ""),
                None => ("", "", text),
            })
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "casefold" => {
            let () = from_args(args)?;
            Value::from(text.to_lowercase())
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
            let zeros = "0".repeat(width.min(MAX_WIDTH).saturating_sub(text.chars().count()));
            Value::from(format!("{}{zeros}{digits}", &text[..text.len() - digits.len()]))
        }
        "ljust" | "rjust" => {
            let (width, fill): (usize, Option<char>) = from_args(args)?;
            let padding: String =
                std::iter::repeat_n(fill.unwrap_or(' '), width.min(MAX_WIDTH).saturating_sub(text.chars().count())).collect();
            Value::from(if name == "ljust" { format!("{text}{padding}") } else { format!("{padding}{text}") })
        }
        "index" => {
            let (part,): (&str,) = from_args(args)?;
            let at = text.find(part).ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "substring not found"))?;
            Value::from(text[..at].chars().count())
        }
        _ => return Ok(None),
    }))
}

/// Widest text that a template can pad to.
const MAX_WIDTH: usize = 4096;

/// `str.strip` and its one-sided forms.
fn strip<'a>(text: &'a str, chars: Option<&str>, start: bool, end: bool) -> &'a str {
    let drop = |c: char| chars.map_or_else(|| python::is_space(c), |chars| chars.contains(c));
    let text = if start { text.trim_start_matches(drop) } else { text };
    if end { text.trim_end_matches(drop) } else { text }
}

/// `str.split` (or `rsplit`) with at most `max` cuts.
fn split<'a>(text: &'a str, separator: Option<&str>, max: usize, from_right: bool) -> Result<Vec<&'a str>, Error> {
    let pieces = max.saturating_add(1);
    match separator {
        Some("") => Err(Error::new(ErrorKind::InvalidOperation, "split: empty separator")),
        Some(separator) if from_right => {
            let mut parts: Vec<_> = text.rsplitn(pieces, separator).collect();
            parts.reverse();
            Ok(parts)
        }
        Some(separator) => Ok(text.splitn(pieces, separator).collect()),
        None => Ok(split_on_space(text, max, from_right)),
    }
}

fn split_on_space(text: &str, max: usize, from_right: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = strip(text, None, !from_right, from_right);
    while !rest.is_empty() {
        let cut = if from_right { rest.rfind(python::is_space) } else { rest.find(python::is_space) };
        match cut {
            Some(at) if parts.len() < max => {
                let (left, right) = (&rest[..at], strip(&rest[at..], None, true, false));
                parts.push(if from_right { right } else { left });
                rest = if from_right { strip(left, None, false, true) } else { right };
            }
            _ => {
                parts.push(rest);
                break;
            }
        }
    }
    if from_right {
        parts.reverse();
    }
    parts
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn render(source: &str) -> Result<String, Error> {
        let json = r#"{"text": "  a, b ,c\n", "n": 3, "big": 18446744073709551615, "f": 1e-7, "none": null, "list": [1, "x"],
            "map": {"z": 1, "items": [1], "a": {"é": "<b>&'\"\u0001"}}}"#;
        let context = from_json(&serde_json::from_str(json).unwrap());
        environment(|| UNIX_EPOCH + Duration::from_secs(951_782_400)).render_str(&without_generation_blocks(source), context)
    }

    #[test]
    fn templates_render_as_under_pythons_jinja() {
        let cases = [
            ("{{ missing }}|{{ none }}|{{ true }}|{{ big }}|{{ f }}", "|None|True|18446744073709551615|1e-07"),
            ("{{ list }} {{ map }}", r#"[1, 'x'] {'z': 1, 'items': [1], 'a': {'é': '<b>&\'"\x01'}}"#),
            ("{{ map | tojson }}", r#"{"z": 1, "items": [1], "a": {"é": "<b>&'\"\u0001"}}"#),
            ("{{ map.a | tojson(ensure_ascii=True) }}", r#"{"\u00e9": "<b>&'\"\u0001"}"#),
            (
                "{{ map | tojson(indent=2) }}",
                "{\n  \"z\": 1,\n  \"items\": [\n    1\n  ],\n  \"a\": {\n    \"é\": \"<b>&'\\\"\\u0001\"\n  }\n}",
            ),
            ("{{ {'b': [], 'a': {}} | tojson(separators=(',', ':'), sort_keys=true) }}", r#"{"a":{},"b":[]}"#),
            ("{{ {1: 2.0, none: true} | tojson }}", r#"{"1": 2.0, "null": true}"#),
            ("{{ [big, f, 1e16, -0.0] | tojson }}", "[18446744073709551615, 1e-07, 1e+16, -0.0]"),
            ("{{ map.items() | list | length }}{% for k, v in map.items() %}{{ k }}{% endfor %}", "3zitemsa"),
            ("{{ map.get('q') }}|{{ map.get('q', 7) }}|{{ map.get('z') }}", "None|7|1"),
            ("[{{ text.strip() }}][{{ text | trim }}][{{ text.lstrip(' a') }}]", "[a, b ,c][a, b ,c][, b ,c\n]"),
            ("{{ text.split(',') }}{{ text.split() }}", r"['  a', ' b ', 'c\n']['a,', 'b', ',c']"),
            ("{{ 'a-b-c'.split('-', 1) }}{{ 'a-b-c'.rsplit('-', maxsplit=1) }}", "['a', 'b-c']['a-b', 'c']"),
            ("{{ 'a b  c '.split(none, 1) }}{{ ' a b  c '.rsplit(none, 1) }}", "['a', 'b  c '][' a b', 'c']"),
            ("{{ 'k=v=w'.partition('=') }}{{ 'kv'.rpartition('=') }}", "('k', '=', 'v=w')('', '', 'kv')"),
            ("{{ 'abc'.removeprefix('a').removesuffix('c') }}{{ '-7'.zfill(4) }}{{ 'x'.ljust(3) }}|", "b-007x  |"),
            ("{{ 'abc'[::-1] }}{{ list[::-1] }}{{ 'abc'[-1] }}{{ [1, 2, 3][1:] }}", "cba['x', 1]c[2, 3]"),
            ("{{ 'abc'.startswith('ab') and 'abc'.endswith(('x', 'c')) }}", "True"),
            ("{{ text is sequence }}{{ none is iterable }}{{ list is iterable }}{{ map is mapping }}", "TrueFalseTrueTrue"),
            ("{% for x in [1, 2, 3, 4] %}{% if x == 2 %}{% continue %}{% elif x == 4 %}{% break %}{% endif %}{{ x }}{% endfor %}", "13"),
            ("{% for x in [1, 2] %}{{ loop.previtem is defined }}{{ loop.nextitem }}{% endfor %}", "False2True"),
            (
                "{% set ns = namespace(n=0) %}{% macro up() %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{% endmacro %}{{ up() }}{{ up() }}{{ ns.n }}",
                "122",
            ),
            ("  {% if true %}\n  x\n  {% endif %}\ny\n", "  x\ny"),
            ("a {%- generation -%} b {%- endgeneration %} c", "ab c"),
            ("{{ strftime_now('%d %B %Y') }}", "29 February 2000"),
            ("{{ '<' ~ n ~ '>' }}{{ '%s-%d' | format('a', 3) }}", "<3>a-3"),
        ];
        for (source, expected) in cases {
            assert_eq!(render(source).unwrap_or_else(|e| panic!("{source}: {e}")), expected, "{source}");
        }
    }

    #[test]
    fn mistakes_are_errors_as_in_python() {
        for source in
            ["{{ missing.field }}", "{{ missing | tojson }}", "{{ 'a'.split('') }}", "{{ raise_exception('no') }}", "{{ nosuch() }}"]
        {
            assert!(render(source).is_err(), "{source}");
        }
    }
}
