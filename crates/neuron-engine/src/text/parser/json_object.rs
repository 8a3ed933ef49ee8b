//! Where a JSON object ends, while it is still being written.

/// Follows an object by its strings and brackets, and notices when it cannot be JSON any more.
#[derive(Debug, Default)]
pub(super) struct JsonObject {
    depth: usize,
    in_string: bool,
    escaped: bool,
    torn: bool,
}

/// How far a text belongs to the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// There is more of it to come.
    Open,
    /// It ends here.
    End,
    /// It is no JSON, and here stands the tag that ends the call, so many bytes long.
    Torn(usize),
}

impl JsonObject {
    /// One whose opening brace was seen already.
    pub(super) fn inside() -> Self {
        Self { depth: 1, ..Self::default() }
    }

    /// How many bytes of `text` belong to the object, and what is behind them. A string may hold the tag `close`, and so it ends only an
    /// object that is none.
    pub(super) fn read(&mut self, text: &str, close: Option<&str>) -> (usize, Reach) {
        for (at, c) in text.char_indices() {
            self.torn |= self.is_torn_by(c);
            if let (true, Some(close)) = (self.torn, close) {
                let rest = &text[at..];
                if rest.starts_with(close) {
                    return (at, Reach::Torn(close.len()));
                }
                if close.starts_with(rest) {
                    return (at, Reach::Open);
                }
            }
            if self.ends_with(c) {
                return (at + c.len_utf8(), Reach::End);
            }
        }
        (text.len(), Reach::Open)
    }

    fn is_torn_by(&self, c: char) -> bool {
        if self.in_string { c < ' ' } else { !(c.is_ascii_alphanumeric() || " \t\r\n{}[]:,\"+-.".contains(c)) }
    }

    fn ends_with(&mut self, c: char) -> bool {
        match c {
            _ if self.escaped => self.escaped = false,
            '\\' if self.in_string => self.escaped = true,
            '"' => self.in_string = !self.in_string,
            _ if self.in_string => {}
            '{' | '[' => self.depth += 1,
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}
