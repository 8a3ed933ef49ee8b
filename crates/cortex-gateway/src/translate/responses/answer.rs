//! The objects of an answer in this dialect.

use cortex_core::openai::CompletionUsage;
use serde_json::{Map, Value, json};

use super::request::Echo;

/// What the answer has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    InProgress,
    Completed,
    /// Cut at `max_output_tokens`, or by a filter.
    Incomplete(&'static str),
    Failed,
}

impl Status {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete(_) => "incomplete",
            Self::Failed => "failed",
        }
    }
}

/// What stays the same through an answer.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) id: String,
    pub(super) created_at: u64,
    pub(super) echo: Echo,
}

impl Head {
    /// The whole object. Nothing is stored, whatever the request says of it.
    pub(super) fn response(&self, status: Status, output: &[Item], usage: Option<CompletionUsage>, error: Option<(&str, &str)>) -> Value {
        let mut response = Map::new();
        let mut put = |name: &str, value: Value| response.insert(name.to_owned(), value);
        put("id", self.id.as_str().into());
        put("object", "response".into());
        put("created_at", self.created_at.into());
        put("status", status.word().into());
        put("background", false.into());
        put("error", error.map_or(Value::Null, |(code, message)| json!({ "code": code, "message": message })));
        put("incomplete_details", if let Status::Incomplete(reason) = status { json!({ "reason": reason }) } else { Value::Null });
        put("model", self.echo.model.as_str().into());
        put("output", output.iter().map(Item::json).collect());
        put("previous_response_id", Value::Null);
        put("store", false.into());
        put("usage", usage.map_or(Value::Null, usage_json));
        response.extend(self.echo.fields.clone());
        Value::Object(response)
    }
}

fn usage_json(usage: CompletionUsage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": { "cached_tokens": usage.prompt_tokens_details.cached_tokens, "cache_write_tokens": 0 },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": { "reasoning_tokens": usage.completion_tokens_details.reasoning_tokens },
        "total_tokens": usage.total_tokens,
    })
}

/// One thing that the model said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) id: String,
    /// `in_progress`, then `completed` or `incomplete`.
    pub(super) status: &'static str,
    pub(super) said: Said,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Text(String),
    Thought(String),
    Call { call_id: String, namespace: Option<String>, name: String, arguments: String },
}

impl Item {
    pub(super) fn json(&self) -> Value {
        let status = self.status;
        match &self.said {
            Said::Text(text) => {
                let content: Vec<Value> = self.part().filter(|_| !text.is_empty()).into_iter().collect();
                json!({ "id": self.id, "type": "message", "status": status, "role": "assistant", "content": content })
            }
            Said::Thought(text) => {
                let content: Vec<Value> = self.part().filter(|_| !text.is_empty()).into_iter().collect();
                json!({ "id": self.id, "type": "reasoning", "status": status, "summary": [], "content": content })
            }
            Said::Call { call_id, namespace, name, arguments } => {
                let mut call = json!({
                    "id": self.id, "type": "function_call", "status": status, "call_id": call_id, "name": name, "arguments": arguments,
                });
                if let Some(namespace) = namespace {
                    call["namespace"] = namespace.as_str().into();
                }
                call
            }
        }
    }

    /// Its one part; a call has none.
    pub(super) fn part(&self) -> Option<Value> {
        match &self.said {
            Said::Text(text) => Some(json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })),
            Said::Thought(text) => Some(json!({ "type": "reasoning_text", "text": text })),
            Said::Call { .. } => None,
        }
    }
}
