//! What is wrong with a placement, at which place of the operator's file.

use std::fmt;

/// One mistake. [`Problem::path`] names a field from the file's root; whoever evaluated the file knows its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `models`, `qwen3-8b`, `placement`, `beast`: as deep as the mistake. Items of lists are numbers.
    pub path: Vec<String>,
    /// What is wrong.
    pub message: String,
    /// What to say beneath the line itself.
    pub label: String,
    /// What lies beneath, and what to do.
    pub notes: Vec<String>,
}

impl Problem {
    /// A mistake at `path`.
    pub fn at(path: &[&str], message: impl Into<String>) -> Self {
        let path = path.iter().map(|part| (*part).to_owned()).collect();
        Self { path, message: message.into(), label: String::new(), notes: Vec::new() }
    }

    /// Adds what stands beneath the line.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Adds a note.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }
}

/// For those who have no file to point into.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.join("."), self.message)?;
        for note in self.label.lines().chain(self.notes.iter().map(String::as_str)) {
            write!(f, "\n  = {note}")?;
        }
        Ok(())
    }
}
