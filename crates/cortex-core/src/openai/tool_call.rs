//! Tool calls in the chat dialect: whole, streamed piece by piece, and the fold from pieces to wholes.

use serde::{Deserialize, Serialize};

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Names the call; the message with its result says it as `tool_call_id`.
    pub id: String,
    /// Always `function`.
    #[serde(default, rename = "type")]
    pub kind: ToolKind,
    /// What is called.
    pub function: FunctionCall,
}

/// The word in `type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolKind {
    /// The only one.
    #[default]
    Function,
}

/// A function and what it is called with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionCall {
    /// Its name.
    pub name: String,
    /// A JSON object, as text.
    pub arguments: String,
}

/// What is new in a call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCallDelta {
    /// Which call of the message, from 0.
    pub index: u32,
    /// Only in the call's first delta.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Only in the call's first delta.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<ToolKind>,
    /// More of the function.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<FunctionDelta>,
}

/// What is new in a call's function.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionDelta {
    /// Only in the call's first delta.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of the arguments' text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<String>,
}

impl ToolCallDelta {
    /// A call begins.
    pub fn begin(index: u32, id: String, name: String) -> Self {
        let function = FunctionDelta { name: Some(name), arguments: Some(String::new()) };
        Self { index, id: Some(id), kind: Some(ToolKind::Function), function: Some(function) }
    }

    /// More of its arguments.
    pub fn more(index: u32, arguments: String) -> Self {
        let function = FunctionDelta { name: None, arguments: Some(arguments) };
        Self { index, function: Some(function), ..Self::default() }
    }
}

/// Puts the pieces of a message's calls together.
#[derive(Debug, Default)]
pub(super) struct ToolCallFold {
    calls: Vec<(u32, ToolCall)>,
}

impl ToolCallFold {
    pub(super) fn push(&mut self, delta: ToolCallDelta) {
        let place = self.calls.iter().position(|(index, _)| *index == delta.index).unwrap_or_else(|| {
            self.calls.push((delta.index, ToolCall { id: String::new(), kind: ToolKind::Function, function: FunctionCall::default() }));
            self.calls.len() - 1
        });
        let call = &mut self.calls[place].1;
        let FunctionDelta { name, arguments } = delta.function.unwrap_or_default();
        call.id = delta.id.unwrap_or_else(|| std::mem::take(&mut call.id));
        call.function.name.push_str(&name.unwrap_or_default());
        call.function.arguments.push_str(&arguments.unwrap_or_default());
    }

    pub(super) fn finish(mut self) -> Vec<ToolCall> {
        self.calls.sort_by_key(|(index, _)| *index);
        self.calls.into_iter().map(|(_, call)| call).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pieces_of_calls_fold_whatever_their_order_across_calls() {
        let deltas = json!([
            {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}},
            {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"x\":"}},
            {"index": 1, "function": {"arguments": "{}"}},
            {"index": 0, "function": {"arguments": "1}"}},
            {"index": 0}
        ]);
        let deltas: Vec<ToolCallDelta> = serde_json::from_value(deltas).unwrap();
        let mut fold = ToolCallFold::default();
        deltas.into_iter().for_each(|delta| fold.push(delta));
        let expected = json!([
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}}
        ]);
        assert_eq!(json!(fold.finish()), expected);
    }
}
