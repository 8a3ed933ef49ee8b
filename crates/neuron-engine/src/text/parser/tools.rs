//! The tools that a request offers, as far as reading calls needs them.

use serde_json::Value;

/// Function definitions, with or without OpenAI's `{"type": "function", "function": …}` around each.
#[derive(Debug)]
pub(super) struct Tools(Vec<Value>);

impl Tools {
    pub(super) fn new(tools: &[Value]) -> Self {
        Self(tools.iter().map(|tool| tool.get("function").unwrap_or(tool).clone()).collect())
    }

    /// True if a function of this name is offered.
    pub(super) fn offer(&self, name: &str) -> bool {
        self.function(name).is_some()
    }

    /// The JSON value that a parameter's text stands for: by its schema, and text where that does not fit or is not known.
    pub(super) fn value(&self, function: &str, parameter: &str, text: &str) -> Value {
        let types = self.types(function, parameter);
        let text_fits = types.is_empty() || types.contains(&"string");
        let fits = |value: &Value| types.iter().any(|kind| is_a(value, kind)) && (value.is_null() || !text_fits);
        json(text).filter(fits).unwrap_or_else(|| text.into())
    }

    /// True if a parameter's text stands for itself, whatever it says.
    pub(super) fn is_text(&self, function: &str, parameter: &str) -> bool {
        self.types(function, parameter).iter().all(|kind| *kind == "string")
    }

    fn types(&self, function: &str, parameter: &str) -> Vec<&str> {
        let schema = self.function(function).and_then(|function| function["parameters"]["properties"].get(parameter));
        schema.map(types).unwrap_or_default()
    }

    fn function(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|function| function["name"] == name)
    }
}

/// JSON, or one of its words as Python spells it.
fn json(text: &str) -> Option<Value> {
    match text {
        "True" => Some(true.into()),
        "False" => Some(false.into()),
        "None" => Some(Value::Null),
        _ => serde_json::from_str(text).ok(),
    }
}

/// The types that a schema allows, by name.
fn types(schema: &Value) -> Vec<&str> {
    let named = match &schema["type"] {
        Value::String(one) => vec![one.as_str()],
        Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let alternatives = ["anyOf", "oneOf"].into_iter().filter_map(|key| schema[key].as_array()).flatten();
    named.into_iter().chain(alternatives.flat_map(types)).collect()
}

fn is_a(value: &Value, kind: &str) -> bool {
    match kind {
        "integer" | "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        _ => false,
    }
}
