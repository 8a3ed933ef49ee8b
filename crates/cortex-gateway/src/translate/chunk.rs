//! What a node says, as far as the other dialects need it.

use cortex_core::openai::{self, CompletionUsage};
use serde::Deserialize;
use serde_json::Value;

/// A chunk of a node's stream. A whole answer is one chunk, too: its `message` is the only delta.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Chunk {
    #[serde(default)]
    pub(super) choices: Vec<Choice>,
    pub(super) usage: Option<CompletionUsage>,
    pub(super) error: Option<openai::error::ErrorDetail>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Choice {
    #[serde(default)]
    pub(super) index: u32,
    #[serde(default, alias = "message")]
    pub(super) delta: Delta,
    pub(super) finish_reason: Option<String>,
    /// The stop text, where the node tells it (a convention of vLLM's).
    pub(super) stop_reason: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Delta {
    pub(super) content: Option<String>,
    #[serde(alias = "reasoning")]
    pub(super) reasoning_content: Option<String>,
    pub(super) tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct CallDelta {
    /// Absent in a whole answer, where the place tells.
    pub(super) index: Option<usize>,
    pub(super) id: Option<String>,
    #[serde(default)]
    pub(super) function: FunctionDelta,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct FunctionDelta {
    pub(super) name: Option<String>,
    pub(super) arguments: Option<String>,
}
