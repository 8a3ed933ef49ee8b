//! A message about a file, and its three forms: coloured, plain, and JSON.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Diagnostic {
    /// What is wrong, in one sentence.
    pub(crate) message: String,
    /// Where, the most important place first; empty when the whole file is at fault.
    pub(crate) spans: Vec<Span>,
    /// What lies beneath, and what to do.
    pub(crate) notes: Vec<String>,
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Span {
    pub(crate) file: String,
    /// Counted from 1.
    pub(crate) line: usize,
    /// In characters, counted from 1.
    pub(crate) column: usize,
    /// Characters, at least 1, to the end of the line at most.
    pub(crate) width: usize,
    /// What to say there.
    pub(crate) label: String,
    /// The line itself.
    pub(crate) text: String,
}

/// How to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Coloured,
    Plain,
    Json,
}

impl Diagnostic {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), spans: Vec::new(), notes: Vec::new() }
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    pub(crate) fn span(mut self, span: Option<Span>) -> Self {
        self.spans.extend(span);
        self
    }
}

impl Span {
    /// The place from byte `start` to byte `end` of `source`, as far as its first line goes.
    pub(crate) fn of(file: &str, source: &str, start: usize, end: usize) -> Self {
        let start = floor(source, start);
        let line_start = source[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = source[start..].find('\n').map_or(source.len(), |at| start + at);
        let end = floor(source, end).clamp(start, line_end);
        Self {
            file: file.to_owned(),
            line: source[..start].matches('\n').count() + 1,
            column: source[line_start..start].chars().count() + 1,
            width: source[start..end].chars().count().max(1),
            label: String::new(),
            text: source[line_start..line_end].trim_end().to_owned(),
        }
    }

    pub(crate) fn labelled(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }
}

fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// All of them, in `form`. JSON is one array, so that a program can read it whole.
pub(crate) fn render(all: &[Diagnostic], form: Form) -> String {
    match form {
        Form::Json => {
            let mut text = serde_json::to_string_pretty(&all.iter().map(json).collect::<Vec<_>>()).unwrap_or_default();
            text.push('\n');
            text
        }
        Form::Plain | Form::Coloured => all.iter().map(|one| text(one, form == Form::Coloured)).collect::<Vec<_>>().join("\n"),
    }
}

/// File, line and column of the first place are at the top, where an editor looks for them.
fn json(one: &Diagnostic) -> serde_json::Value {
    let first = one.spans.first();
    serde_json::json!({
        "severity": "error",
        "message": one.message,
        "file": first.map(|span| &span.file),
        "line": first.map(|span| span.line),
        "column": first.map(|span| span.column),
        "spans": one.spans.iter().map(|span| serde_json::json!({
            "file": span.file, "line": span.line, "column": span.column, "width": span.width, "label": span.label,
        })).collect::<Vec<_>>(),
        "notes": one.notes,
    })
}

fn text(one: &Diagnostic, colour: bool) -> String {
    let ink = |code: &str, text: &str| if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() };
    let gutter = one.spans.iter().map(|span| span.line.to_string().len()).max().unwrap_or(1);
    let blank = " ".repeat(gutter);
    let mut out = format!("{}: {}\n", ink("1;31", "error"), ink("1", &one.message));
    for span in &one.spans {
        let place = format!("{}:{}:{}", span.file, span.line, span.column);
        let _ = writeln!(out, "{blank} {} {place}", ink("34", "┌─"));
        let _ = writeln!(out, "{} {} {}", ink("34", &format!("{:>gutter$}", span.line)), ink("34", "│"), span.text);
        let indent = " ".repeat(span.column - 1);
        let carets = ink("31", format!("{} {}", "^".repeat(span.width), span.label).trim_end());
        let _ = writeln!(out, "{blank} {} {indent}{carets}", ink("34", "│"));
    }
    for note in &one.notes {
        let mut lines = note.trim_end().lines();
        let _ = writeln!(out, "{blank} {} {}", ink("34", "="), lines.next().unwrap_or_default());
        for line in lines {
            let _ = writeln!(out, "{blank}   {line}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_shows_the_line_and_what_is_beneath() {
        let source = "{\n  naïve = \"x\",\n}";
        let at = source.find('"').unwrap();
        let one = Diagnostic::new("it is wrong").span(Some(Span::of("models.ncl", source, at, at + 3).labelled("here"))).note("two\nlines");
        insta::assert_snapshot!(text(&one, false), @r#"
        error: it is wrong
          ┌─ models.ncl:2:11
        2 │   naïve = "x",
          │           ^^^ here
          = two
            lines
        "#);
    }

    #[test]
    fn a_place_outside_the_text_is_its_end() {
        let span = Span::of("f", "ab", 9, 12);
        assert_eq!((span.line, span.column, span.width), (1, 3, 1));
    }
}
