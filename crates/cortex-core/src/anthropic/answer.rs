//! A whole answer, and how it is put together from the events of a stream.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::stream::{BlockDelta, StreamEvent};

/// The answer of `POST /v1/messages`; with no content yet, what `message_start` tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Names the answer.
    pub id: String,
    /// Always `message`.
    #[serde(rename = "type")]
    pub kind: MessageKind,
    /// Always the assistant.
    pub role: AnswerRole,
    /// The model, as the request named it.
    pub model: String,
    /// What the model said.
    pub content: Vec<AnswerBlock>,
    /// Why it ended; null in `message_start`.
    pub stop_reason: Option<StopReason>,
    /// The stop sequence that ended it, where the node tells.
    pub stop_sequence: Option<String>,
    /// What was counted.
    pub usage: Usage,
}

impl Message {
    /// An answer that has not begun.
    pub fn new(id: String, model: String, usage: Usage) -> Self {
        let (kind, role) = (MessageKind::Message, AnswerRole::Assistant);
        Self { id, kind, role, model, content: Vec::new(), stop_reason: None, stop_sequence: None, usage }
    }
}

/// The word in `type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageKind {
    /// The only one.
    Message,
}

/// The word in `role`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerRole {
    /// The only one.
    Assistant,
}

/// One content block of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AnswerBlock {
    /// What the model says.
    Text {
        /// The words.
        text: String,
    },
    /// What it thinks before.
    Thinking {
        /// The words.
        thinking: String,
        /// Opaque; a client sends it back and nobody here reads it.
        signature: String,
    },
    /// A call.
    ToolUse {
        /// Names the call.
        id: String,
        /// The tool.
        name: String,
        /// The arguments.
        input: Value,
    },
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model ended its turn.
    EndTurn,
    /// `max_tokens` or the context was reached.
    MaxTokens,
    /// One of the request's texts came up.
    StopSequence,
    /// The model waits for the results of its calls.
    ToolUse,
    /// The answer was withheld.
    Refusal,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// Always 0: nothing is charged for filling the cache.
    pub cache_creation_input_tokens: u32,
    /// Tokens of the prompt that were found in the cache.
    pub cache_read_input_tokens: u32,
    /// Tokens generated so far.
    pub output_tokens: u32,
}

/// Puts the events of a stream together into the answer that they would have been without streaming.
#[derive(Debug, Default)]
pub struct MessageFold {
    message: Option<Message>,
    /// The arguments of the call that is open.
    arguments: String,
    ended: bool,
}

impl MessageFold {
    /// Adds the next event.
    pub fn push(&mut self, event: StreamEvent) {
        let Some(message) = &mut self.message else {
            if let StreamEvent::MessageStart { message } = event {
                self.message = Some(message);
            }
            return;
        };
        match event {
            StreamEvent::ContentBlockStart { content_block, .. } => message.content.push(content_block),
            StreamEvent::ContentBlockDelta { delta, .. } => match (message.content.last_mut(), delta) {
                (Some(AnswerBlock::Text { text }), BlockDelta::TextDelta { text: more }) => text.push_str(&more),
                (Some(AnswerBlock::Thinking { thinking, .. }), BlockDelta::ThinkingDelta { thinking: more }) => thinking.push_str(&more),
                (Some(AnswerBlock::Thinking { signature, .. }), BlockDelta::SignatureDelta { signature: whole }) => *signature = whole,
                (_, BlockDelta::InputJsonDelta { partial_json }) => self.arguments.push_str(&partial_json),
                _ => {}
            },
            StreamEvent::ContentBlockStop { .. } => self.close_block(),
            StreamEvent::MessageDelta { delta, usage } => {
                let calls = message.content.iter().any(|block| matches!(block, AnswerBlock::ToolUse { .. }));
                let stop_reason =
                    delta.stop_reason.map(|reason| if reason == StopReason::ToolUse && !calls { StopReason::EndTurn } else { reason });
                (message.stop_reason, message.stop_sequence, message.usage) = (stop_reason, delta.stop_sequence, usage);
            }
            StreamEvent::MessageStop => self.ended = true,
            StreamEvent::MessageStart { .. } | StreamEvent::Ping | StreamEvent::Error { .. } => {}
        }
    }

    /// A call whose arguments broke off, or are no JSON, can have no `input`. It must not be carried out, and what was said must not be lost:
    /// it stays as text.
    fn close_block(&mut self) {
        let arguments = std::mem::take(&mut self.arguments);
        let Some(message) = &mut self.message else { return };
        let Some(block) = message.content.last_mut() else { return };
        if let AnswerBlock::ToolUse { input, name, .. } = block {
            match serde_json::from_str(&arguments) {
                Ok(Value::Object(whole)) => *input = Value::Object(whole),
                _ => *block = AnswerBlock::Text { text: format!("{name} {arguments}") },
            }
        }
    }

    /// The answer; `None` when the stream did not reach its end.
    pub fn finish(self) -> Option<Message> {
        self.message.filter(|_| self.ended)
    }
}
