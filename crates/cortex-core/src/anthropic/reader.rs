//! Reading a request field by field, so that an error names the one at fault by its path and unknown ones never matter.

use serde_json::{Map, Value};

/// What is wrong with a request: `messages.0.content: must be …`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RequestError(String);

impl RequestError {
    pub(super) fn new(path: &str, says: impl std::fmt::Display) -> Self {
        Self(format!("{path}: {says}"))
    }

    /// The field holds the wrong kind of JSON.
    pub(super) fn wrong(path: &str, expected: &str, got: &Value) -> Self {
        let kind = match got {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "an array",
            Value::Object(_) => "an object",
        };
        Self::new(path, format_args!("must be {expected}, not {kind}"))
    }
}

/// One JSON object of a request, and where it stands. `null` counts as absent everywhere.
#[derive(Debug)]
pub(super) struct Reader {
    path: String,
    fields: Map<String, Value>,
}

impl Reader {
    pub(super) fn body(body: &[u8]) -> Result<Self, RequestError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self { path: String::new(), fields }),
            Ok(other) => Err(RequestError::wrong("body", "an object", &other)),
            Err(error) => Err(RequestError::new("body", format_args!("is not valid JSON: {error}"))),
        }
    }

    pub(super) fn new(path: String, value: Value) -> Result<Self, RequestError> {
        match value {
            Value::Object(fields) => Ok(Self { path, fields }),
            other => Err(RequestError::wrong(&path, "an object", &other)),
        }
    }

    /// The path of the field `name`.
    pub(super) fn at(&self, name: &str) -> String {
        if self.path.is_empty() { name.into() } else { format!("{}.{name}", self.path) }
    }

    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.fields.remove(name).filter(|value| !value.is_null())
    }

    pub(super) fn required<T>(&self, name: &str, value: Option<T>) -> Result<T, RequestError> {
        value.ok_or_else(|| RequestError::new(&self.at(name), "is required"))
    }

    pub(super) fn string(&mut self, name: &str) -> Result<Option<String>, RequestError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(RequestError::wrong(&self.at(name), "a string", &other)),
        }
    }

    pub(super) fn text(&mut self, name: &str) -> Result<String, RequestError> {
        let text = self.string(name)?;
        self.required(name, text)
    }

    pub(super) fn flag(&mut self, name: &str) -> Result<Option<bool>, RequestError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(RequestError::wrong(&self.at(name), "true or false", &other)),
        }
    }

    pub(super) fn number(&mut self, name: &str) -> Result<Option<f64>, RequestError> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| RequestError::wrong(&self.at(name), "a number", &value)),
        }
    }

    pub(super) fn integer(&mut self, name: &str, min: u64) -> Result<Option<u64>, RequestError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_u64() {
            Some(number) if number >= min => Ok(Some(number)),
            _ if value.is_number() => {
                Err(RequestError::new(&self.at(name), format_args!("must be an integer of at least {min}, not {value}")))
            }
            _ => Err(RequestError::wrong(&self.at(name), "an integer", &value)),
        }
    }

    /// Each item with its path.
    pub(super) fn array(&mut self, name: &str) -> Result<Option<Vec<(String, Value)>>, RequestError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(placed(&self.at(name), items))),
            Some(other) => Err(RequestError::wrong(&self.at(name), "an array", &other)),
        }
    }

    pub(super) fn object(&mut self, name: &str) -> Result<Option<Self>, RequestError> {
        self.take(name).map(|value| Self::new(self.at(name), value)).transpose()
    }
}

/// `path.0`, `path.1`, … beside the items.
pub(super) fn placed(path: &str, items: Vec<Value>) -> Vec<(String, Value)> {
    items.into_iter().enumerate().map(|(place, item)| (format!("{path}.{place}"), item)).collect()
}
