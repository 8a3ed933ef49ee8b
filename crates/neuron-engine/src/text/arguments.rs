//! The arguments of earlier calls, as chat templates take them.
//!
//! OpenAI's clients send back a text that holds JSON; transformers gives templates the object. Some templates take both, some only
//! one: which is found out by asking, not by reading the template.

use std::borrow::Cow;

use cortex_core::ChatPrompt;
use serde_json::{Map, Value, json};

/// A word that no template writes by itself.
const NEEDLE: &str = "needle-of-arguments";

/// True if arguments come out right as objects only. `render` gives a conversation's text, or nothing if the template fails.
pub(super) fn only_objects(render: impl Fn(&ChatPrompt) -> Option<String>) -> bool {
    let object = json!({ NEEDLE: 1 });
    let text = Value::String(object.to_string());
    let comes_out = |arguments: &Value| render(&conversation(arguments)).is_some_and(|text| is_written_once(&text));
    comes_out(&object) && !comes_out(&text)
}

/// JSON inside a JSON text would have its quotes escaped.
fn is_written_once(text: &str) -> bool {
    text.contains(NEEDLE) && !text.contains(&format!("\\\"{NEEDLE}"))
}

/// A conversation with a call that templates of all families accept.
fn conversation(arguments: &Value) -> ChatPrompt {
    let function = json!({"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}});
    let call = json!({"id": "call00001", "type": "function", "function": {"name": "f", "arguments": arguments}});
    let messages = [
        json!({"role": "user", "content": "x"}),
        json!({"role": "assistant", "content": "", "tool_calls": [call]}),
        json!({"role": "tool", "tool_call_id": "call00001", "name": "f", "content": "y"}),
    ];
    ChatPrompt {
        messages: messages.into_iter().filter_map(|message| message.as_object().cloned()).collect(),
        tools: Some(vec![json!({"type": "function", "function": function})]),
        ..Default::default()
    }
}

/// The message with each call's arguments as an object, where their text holds one.
pub(super) fn as_objects(message: &Map<String, Value>) -> Cow<'_, Map<String, Value>> {
    if !message.get("tool_calls").is_some_and(Value::is_array) {
        return Cow::Borrowed(message);
    }
    let mut message = message.clone();
    for call in message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
        let flat = call.get("function").is_none();
        let function = if flat { Some(call) } else { call.get_mut("function") };
        let Some(arguments) = function.and_then(|function| function.get_mut("arguments")) else { continue };
        let object = arguments.as_str().and_then(|text| serde_json::from_str(text).ok()).filter(Value::is_object);
        *arguments = object.unwrap_or_else(|| arguments.take());
    }
    Cow::Owned(message)
}
