//! Whether and how output is coloured, and how wide it may be.

use std::io::IsTerminal;

/// A meaning that has a colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ink {
    /// As the terminal writes.
    Plain,
    /// Headings and names.
    Bold,
    /// What can be skipped.
    Dim,
    /// Well.
    Good,
    /// On the way, or nearly full.
    Warn,
    /// Not well.
    Bad,
}

/// How to write to one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Style {
    /// Escape codes are understood and wanted.
    pub(crate) colour: bool,
    /// Columns, where lines would break.
    pub(crate) width: Option<usize>,
}

impl Style {
    /// No colour, any width: for pipes and files.
    pub(crate) const PLAIN: Self = Self { colour: false, width: None };

    /// What standard output wants: plain unless it is a terminal; no colour where `NO_COLOR` is set or the terminal is dumb.
    pub(crate) fn of_stdout() -> Self {
        Self::of(std::io::stdout().is_terminal())
    }

    /// The same for standard error.
    pub(crate) fn of_stderr() -> Self {
        Self::of(std::io::stderr().is_terminal())
    }

    fn of(is_terminal: bool) -> Self {
        if !is_terminal {
            return Self::PLAIN;
        }
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { colour: !set("NO_COLOR") && !dumb, width: terminal_size::terminal_size().map(|(width, _)| usize::from(width.0)) }
    }

    /// `text` in `ink`.
    pub(crate) fn paint(self, ink: Ink, text: &str) -> String {
        let code = match ink {
            Ink::Plain => None,
            Ink::Bold => Some("1"),
            Ink::Dim => Some("2"),
            Ink::Good => Some("32"),
            Ink::Warn => Some("33"),
            Ink::Bad => Some("31"),
        };
        match code.filter(|_| self.colour && !text.is_empty()) {
            Some(code) => format!("\x1b[{code}m{text}\x1b[0m"),
            None => text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_written_only_where_it_is_wanted() {
        let colourful = Style { colour: true, width: None };
        assert_eq!(colourful.paint(Ink::Good, "ready"), "\x1b[32mready\x1b[0m");
        assert_eq!(colourful.paint(Ink::Plain, "ready"), "ready");
        assert_eq!(colourful.paint(Ink::Good, ""), "");
        assert_eq!(Style::PLAIN.paint(Ink::Bad, "ejected"), "ejected");
    }
}
