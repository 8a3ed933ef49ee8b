//! Functions in namespaces: so Codex offers the tools of MCP servers. Chat has none, so a function bears its namespace's name before its own
//! there, and a call of it is told by both again.

use std::collections::HashMap;

use serde_json::{Value, json};

/// The functions of a request that stand in namespaces, by the name that chat knows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Namespaces(HashMap<String, Place>);

/// Where a function stands.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    namespace: String,
    name: String,
}

impl Namespaces {
    pub(super) fn of(tools: &[Value]) -> Self {
        let places = tools.iter().filter_map(functions_of).flat_map(|(namespace, functions)| {
            let names = functions.iter().filter_map(|function| function["name"].as_str());
            names.map(move |name| (joined(namespace, name), Place { namespace: namespace.into(), name: name.into() }))
        });
        Self(places.collect())
    }

    /// The namespace, if there is one, and the name in it.
    pub(super) fn split(&self, name: String) -> (Option<String>, String) {
        match self.0.get(&name) {
            Some(Place { namespace, name }) => (Some(namespace.clone()), name.clone()),
            None => (None, name),
        }
    }
}

/// The functions of a tool that is a namespace, in their own words but for the name.
pub(super) fn flattened(tool: &Value) -> Option<Vec<Value>> {
    let (namespace, functions) = functions_of(tool)?;
    let renamed = functions.iter().map(|function| {
        let mut function = function.clone();
        function["name"] = json!(joined(namespace, function["name"].as_str().unwrap_or_default()));
        function
    });
    Some(renamed.collect())
}

/// `mcp__weather` and `get_weather` are `mcp__weather__get_weather`.
pub(super) fn joined(namespace: &str, name: &str) -> String {
    format!("{}__{name}", namespace.trim_end_matches("__"))
}

fn functions_of(tool: &Value) -> Option<(&str, &[Value])> {
    match (tool["type"].as_str(), tool["name"].as_str(), tool["tools"].as_array()) {
        (Some("namespace"), Some(name), Some(functions)) if functions.iter().all(Value::is_object) => Some((name, functions)),
        _ => None,
    }
}
