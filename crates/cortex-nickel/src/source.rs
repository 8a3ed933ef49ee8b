//! Where each field of the evaluated file was written.

use serde::{Deserialize, Serialize};

use crate::diagnostic::Span;

/// A field and its place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// From the root; items of lists are numbers.
    pub(crate) path: Vec<String>,
    /// Index into [`Marks::files`].
    pub(crate) file: usize,
    /// Bytes of the value; of the name where the value is a record.
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Bytes of the name, where it is written in the same file.
    pub(crate) name: Option<(usize, usize)>,
}

/// Every field that an operator's file wrote.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Marks {
    /// Names and texts.
    pub(crate) files: Vec<(String, String)>,
    pub(crate) marks: Vec<Mark>,
}

impl Marks {
    /// The place of the field at `path`, or of the nearest one around it.
    pub(crate) fn span(&self, path: &[String]) -> Option<Span> {
        self.nearest(path).map(|mark| self.place(mark, (mark.start, mark.end)))
    }

    /// The same, but where the field is named.
    pub(crate) fn name(&self, path: &[String]) -> Option<Span> {
        self.nearest(path).map(|mark| self.place(mark, mark.name.unwrap_or((mark.start, mark.end))))
    }

    fn nearest(&self, path: &[String]) -> Option<&Mark> {
        (0..=path.len()).rev().find_map(|depth| self.marks.iter().find(|mark| mark.path == path[..depth]))
    }

    fn place(&self, mark: &Mark, (start, end): (usize, usize)) -> Span {
        let (name, text) = &self.files[mark.file];
        Span::of(name, text, start, end)
    }
}
