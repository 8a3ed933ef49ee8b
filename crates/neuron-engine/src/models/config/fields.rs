//! Reading `config.json`: every error names the field by its full path.

use std::fmt::Display;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::LoadError;

type Result<T> = std::result::Result<T, LoadError>;

/// One object of a JSON file. A field that is `null` counts as absent, as it does for the libraries that write these files.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    path: String,
    object: Map<String, Value>,
}

impl Fields {
    /// The top-level object of `file`; a missing file is an error with `hint`.
    pub fn read(file: &Path, hint: &str) -> Result<Self> {
        Self::read_if_present(file)?.ok_or_else(|| LoadError::Missing { file: file.to_owned(), hint: hint.to_owned() })
    }

    /// The top-level object of `file`, or `None` where there is no such file.
    pub fn read_if_present(file: &Path) -> Result<Option<Self>> {
        let text = match std::fs::read(file) {
            Ok(text) => text,
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LoadError::Unreadable { file: file.to_owned(), source }),
        };
        let malformed = |what: String| LoadError::Malformed { file: file.to_owned(), what };
        let object = serde_json::from_slice(&text).map_err(|error| malformed(format!("not a JSON object: {error}")))?;
        Ok(Some(Self { path: String::new(), object }))
    }

    /// A positive integer.
    pub fn size(&self, name: &str) -> Result<usize> {
        self.optional_size(name)?.ok_or_else(|| self.missing(name))
    }

    /// A positive integer, or `default` where the field is absent.
    pub fn size_or(&self, name: &str, default: usize) -> Result<usize> {
        Ok(self.optional_size(name)?.unwrap_or(default))
    }

    /// A positive integer, where the field is present.
    pub fn optional_size(&self, name: &str) -> Result<Option<usize>> {
        match self.optional_count(name)? {
            Some(0) => Err(self.error(name, "must be at least 1, but is 0")),
            count => Ok(count),
        }
    }

    /// An integer from zero.
    pub fn count(&self, name: &str) -> Result<usize> {
        self.optional_count(name)?.ok_or_else(|| self.missing(name))
    }

    /// An integer from zero, where the field is present.
    pub fn optional_count(&self, name: &str) -> Result<Option<usize>> {
        self.typed(name, "an integer from 0", |value| Some(u32::try_from(value.as_u64()?).ok()? as usize))
    }

    /// A list of integers from zero, where the field is present.
    pub fn optional_counts(&self, name: &str) -> Result<Option<Vec<usize>>> {
        self.typed(name, "a list of integers from 0", |value| {
            value.as_array()?.iter().map(|item| Some(u32::try_from(item.as_u64()?).ok()? as usize)).collect()
        })
    }

    /// A finite number above zero.
    pub fn positive(&self, name: &str) -> Result<f64> {
        self.optional_positive(name)?.ok_or_else(|| self.missing(name))
    }

    /// A finite number above zero, where the field is present.
    pub fn optional_positive(&self, name: &str) -> Result<Option<f64>> {
        self.typed(name, "a number above 0", |value| value.as_f64().filter(|x| *x > 0. && x.is_finite()))
    }

    /// A truth value, or `default` where the field is absent.
    pub fn flag_or(&self, name: &str, default: bool) -> Result<bool> {
        Ok(self.typed(name, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// A text, where the field is present.
    pub fn optional_text(&self, name: &str) -> Result<Option<String>> {
        self.typed(name, "a text", |value| value.as_str().map(str::to_owned))
    }

    /// A text.
    pub fn text(&self, name: &str) -> Result<String> {
        self.optional_text(name)?.ok_or_else(|| self.missing(name))
    }

    /// A list of texts, where the field is present.
    pub fn optional_texts(&self, name: &str) -> Result<Option<Vec<String>>> {
        self.typed(name, "a list of texts", |value| value.as_array()?.iter().map(|item| Some(item.as_str()?.to_owned())).collect())
    }

    /// An object.
    pub fn section(&self, name: &str) -> Result<Self> {
        self.optional_section(name)?.ok_or_else(|| self.missing(name))
    }

    /// An object, where the field is present.
    pub fn optional_section(&self, name: &str) -> Result<Option<Self>> {
        let object = self.typed(name, "an object", |value| value.as_object().cloned())?;
        Ok(object.map(|object| Self { path: self.path_of(name), object }))
    }

    /// Whether the field is present.
    pub fn contains(&self, name: &str) -> bool {
        self.object.get(name).is_some_and(|value| !value.is_null())
    }

    /// What is wrong with the field `name`.
    pub fn error(&self, name: &str, what: impl Into<String>) -> LoadError {
        LoadError::Config { field: self.path_of(name), what: what.into() }
    }

    /// The field's value asks for something that this engine does not do.
    pub fn unsupported(&self, name: &str, value: impl Display, supported: &str) -> LoadError {
        LoadError::Unsupported(format!("`{}` is {value} in config.json; {supported}", self.path_of(name)))
    }

    fn missing(&self, name: &str) -> LoadError {
        self.error(name, "is missing")
    }

    fn typed<T>(&self, name: &str, expected: &str, read: impl FnOnce(&Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.object.get(name).filter(|value| !value.is_null()) else { return Ok(None) };
        let wrong = || self.error(name, format!("must be {expected}, but is {}", shortened(value)));
        read(value).map(Some).ok_or_else(wrong)
    }

    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}

/// The value as JSON, cut where it would flood the message.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
