//! Fields that are written twice in one record. Nickel merges them without a word, so that the second model of the same name
//! silently changes the first; this reads the text for it.

use crate::diagnostic::{Diagnostic, Span};

/// One record literal while it is open.
#[derive(Default)]
struct Record {
    /// Whole paths (`placement.beast`), with their bytes.
    fields: Vec<(String, usize, usize)>,
}

/// Each field that its record has already.
pub(crate) fn find(name: &str, source: &str) -> Vec<Diagnostic> {
    let mut scan = Scan { bytes: source.as_bytes(), at: 0 };
    let mut open: Vec<Option<Record>> = Vec::new();
    let mut found = Vec::new();
    let mut at_field = false;
    while let Some(byte) = scan.peek() {
        match byte {
            b'#' => scan.skip_line(),
            b'm' if scan.is_multiline() => {
                scan.skip_multiline();
                at_field = false;
            }
            b'"' | b'_' | b'a'..=b'z' | b'A'..=b'Z' => {
                let start = scan.at;
                let path = scan.path();
                let is_field = at_field && scan.defines();
                at_field = false;
                if let (true, Some(Some(record))) = (is_field, open.last_mut()) {
                    let end = start + source[start..scan.at].trim_end().len();
                    match record.fields.iter().find(|(other, ..)| *other == path) {
                        Some((_, first, _)) => found.push(twice(name, source, &path, (start, end), *first)),
                        None => record.fields.push((path, start, end)),
                    }
                }
            }
            b'{' => {
                open.push(Some(Record::default()));
                at_field = true;
                scan.at += 1;
            }
            b'[' | b'(' => {
                open.push(None);
                scan.at += 1;
            }
            b'}' | b']' | b')' => {
                open.pop();
                at_field = false;
                scan.at += 1;
            }
            b',' => {
                at_field = true;
                scan.at += 1;
            }
            byte if byte.is_ascii_whitespace() => scan.at += 1,
            _ => {
                at_field = false;
                scan.at += 1;
            }
        }
    }
    found
}

fn twice(name: &str, source: &str, path: &str, (start, end): (usize, usize), first: usize) -> Diagnostic {
    let line = Span::of(name, source, first, first).line;
    Diagnostic::new(format!("`{path}` is defined twice"))
        .span(Some(Span::of(name, source, start, end).labelled(format!("already defined on line {line}"))))
        .note("the two would be merged into one; give one of them another name, or leave it out")
}

struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn skip_line(&mut self) {
        while self.peek().is_some_and(|byte| byte != b'\n') {
            self.at += 1;
        }
    }

    fn skip_white(&mut self) {
        loop {
            match self.peek() {
                Some(b'#') => self.skip_line(),
                Some(byte) if byte.is_ascii_whitespace() => self.at += 1,
                _ => return,
            }
        }
    }

    /// `m%"`, with any number of `%`.
    fn is_multiline(&self) -> bool {
        let rest = &self.bytes[self.at + 1..];
        let percents = rest.iter().take_while(|byte| **byte == b'%').count();
        percents > 0 && rest.get(percents) == Some(&b'"')
    }

    fn skip_multiline(&mut self) {
        let percents = self.bytes[self.at + 1..].iter().take_while(|byte| **byte == b'%').count();
        let end: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'%', percents)).collect();
        self.at += percents + 2;
        while self.at < self.bytes.len() && !self.bytes[self.at..].starts_with(&end) {
            self.at += 1;
        }
        self.at = (self.at + end.len()).min(self.bytes.len());
    }

    /// `"a.b"` or `name`, with further ones behind dots, as one text without quotes.
    fn path(&mut self) -> String {
        let mut parts = vec![self.part()];
        while self.peek() == Some(b'.') {
            self.at += 1;
            parts.push(self.part());
        }
        parts.join(".")
    }

    fn part(&mut self) -> String {
        let start = self.at;
        if self.peek() != Some(b'"') {
            while self.peek().is_some_and(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'\'')) {
                self.at += 1;
            }
            return String::from_utf8_lossy(&self.bytes[start..self.at]).into_owned();
        }
        self.at += 1;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => break,
                b'\\' => self.at += 2,
                b'%' if self.bytes.get(self.at + 1) == Some(&b'{') => self.skip_braces(),
                _ => self.at += 1,
            }
        }
        let end = self.at.min(self.bytes.len());
        self.at = (self.at + 1).min(self.bytes.len());
        String::from_utf8_lossy(&self.bytes[start + 1..end]).into_owned()
    }

    /// An expression inside a string.
    fn skip_braces(&mut self) {
        let mut depth = 0;
        while let Some(byte) = self.peek() {
            self.at += 1;
            match byte {
                b'{' => depth += 1,
                b'}' if depth == 1 => return,
                b'}' => depth -= 1,
                _ => {}
            }
        }
    }

    /// Whether what follows makes the path a definition with a value of its own.
    fn defines(&mut self) -> bool {
        self.skip_white();
        let rest = &self.bytes[self.at.min(self.bytes.len())..];
        let next = |at: usize| rest.get(at).copied();
        (next(0) == Some(b'=') && next(1) != Some(b'=') && next(1) != Some(b'>')) || (next(0) == Some(b'|') && next(1) != Some(b'>'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_path_in_the_same_record_is_twice() {
        let cases = [
            ("{ a = 1, a = 2 }", 1),
            ("{ a = 1, b = { a = 1 } }", 0),
            ("{ p.x = {}, p.y = {} }", 0),
            ("{ p.x = {}, p.x.mode = 'auto }", 0),
            ("{ \"q.w\" = 1, \"q.w\" = 2 }", 1),
            ("{ a = 1, # a = 2\n b = \"a = 3, a = 4\" }", 0),
            ("{ a = m%\"\n a = 2,\n a = 3,\n\"%, b = \"%{f { a = 1 }}\" }", 0),
            ("{ a = f a b, c = a == a }", 0),
            ("let f = fun a => a in { a = [f a, a], b = a }", 0),
            ("{ a | Number = 1, a | String = \"\" }", 1),
            ("{ a = 1 } & { a = 2 }", 0),
            ("{ a = \"", 0),
        ];
        for (source, expected) in cases {
            assert_eq!(find("f", source).len(), expected, "{source}");
        }
    }
}
