//! Reading a request field by field, so that an error names the one at fault and unknown ones never matter.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::ApiError;
use crate::model::ModelId;

/// The fields of a request that were not read yet. `null` counts as absent everywhere.
#[derive(Clone, Debug, Default)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// Reads a body that must be one JSON object.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        if body.is_empty() {
            return Err(ApiError::invalid("The body is empty: send a JSON object."));
        }
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(other) => Err(ApiError::invalid(format!("The body must be a JSON object, not {}.", shown(&other)))),
            Err(error) => Err(ApiError::invalid(format!("The body is not valid JSON: {error}."))),
        }
    }

    /// Everything that is left, as it came.
    pub fn into_map(self) -> Map<String, Value> {
        self.0
    }

    /// Takes a field out, whatever it holds.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// The model's name, which every request must give.
    pub fn model(&mut self) -> Result<ModelId, ApiError> {
        let model = self.string("model")?.ok_or_else(|| missing("model"))?;
        if model.is_empty() { Err(missing("model")) } else { Ok(ModelId::from(model)) }
    }

    /// A string.
    pub fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(name, "a string", &other)),
        }
    }

    /// `true` or `false`.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(wrong_type(name, "true or false", &other)),
        }
    }

    /// A number inside `range`.
    pub fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().ok_or_else(|| wrong_type(name, "a number", &value))?;
        if range.contains(&number) {
            return Ok(Some(number as f32));
        }
        Err(wrong_value(name, &format!("must be between {} and {}", range.start(), range.end()), &value))
    }

    /// A whole number inside `range`.
    pub fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        if !value.is_i64() && !value.is_u64() {
            return Err(wrong_type(name, "an integer", &value));
        }
        match value.as_i64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ if *range.end() == i64::MAX => Err(wrong_value(name, &format!("must be at least {}", range.start()), &value)),
            _ => Err(wrong_value(name, &format!("must be between {} and {}", range.start(), range.end()), &value)),
        }
    }

    /// A JSON object.
    pub fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(fields)),
            Some(other) => Err(wrong_type(name, "an object", &other)),
        }
    }

    /// A JSON array.
    pub fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(wrong_type(name, "an array", &other)),
        }
    }
}

impl From<Map<String, Value>> for Fields {
    fn from(fields: Map<String, Value>) -> Self {
        Self(fields)
    }
}

/// A required field is not there.
pub fn missing(param: &str) -> ApiError {
    ApiError::new(400, "invalid_request_error", Some("missing_required_parameter"), format!("`{param}` is required.")).with_param(param)
}

/// A field holds the wrong kind of JSON.
pub fn wrong_type(param: &str, expected: &str, got: &Value) -> ApiError {
    let message = format!("`{param}` must be {expected}, not {}.", shown(got));
    ApiError::new(400, "invalid_request_error", Some("invalid_type"), message).with_param(param)
}

/// A field holds a value that cannot be: `rule` follows the field's name in the message.
pub fn wrong_value(param: &str, rule: &str, got: &Value) -> ApiError {
    let message = format!("`{param}` {rule}, not {}.", shown(got));
    ApiError::new(400, "invalid_request_error", Some("invalid_value"), message).with_param(param)
}

/// A field asks for something that this server does not do: better said than silently left out.
pub fn unsupported(param: &str, message: &str) -> ApiError {
    ApiError::new(400, "invalid_request_error", Some("unsupported_value"), message).with_param(param)
}

/// A value in a message, short enough to read.
fn shown(value: &Value) -> String {
    const CHARS_MAX: usize = 40;
    match value {
        Value::Array(_) => "an array".into(),
        Value::Object(_) => "an object".into(),
        Value::String(text) if text.chars().count() > CHARS_MAX => "a long string".into(),
        other => other.to_string(),
    }
}
