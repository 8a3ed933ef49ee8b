//! The events of a streamed answer.

use bytes::BytesMut;
use serde::{Deserialize, Serialize};

use super::answer::{AnswerBlock, Message, StopReason, Usage};
use super::error::ErrorDetail;
use crate::sse;

/// One event. Its name in the stream is its `type`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StreamEvent {
    /// Comes first, once.
    MessageStart {
        /// The answer without content.
        message: Message,
    },
    /// A block opens; only one is open at a time.
    ContentBlockStart {
        /// Its place in `content`.
        index: usize,
        /// The block, empty.
        content_block: AnswerBlock,
    },
    /// More of the open block.
    ContentBlockDelta {
        /// Its place in `content`.
        index: usize,
        /// What is new.
        delta: BlockDelta,
    },
    /// The open block is complete.
    ContentBlockStop {
        /// Its place in `content`.
        index: usize,
    },
    /// The answer is complete.
    MessageDelta {
        /// Why.
        delta: MessageEnd,
        /// What was counted.
        usage: Usage,
    },
    /// Comes last.
    MessageStop,
    /// The server is alive.
    Ping,
    /// The answer broke off; nothing follows.
    Error {
        /// Why.
        error: ErrorDetail,
        /// The request.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_id: Option<String>,
    },
}

/// What is new in a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum BlockDelta {
    /// More text.
    TextDelta {
        /// New characters.
        text: String,
    },
    /// More thoughts.
    ThinkingDelta {
        /// New characters.
        thinking: String,
    },
    /// Ends a thinking block.
    SignatureDelta {
        /// See [`AnswerBlock::Thinking`].
        signature: String,
    },
    /// More of a call's arguments: the pieces together are a JSON object.
    InputJsonDelta {
        /// New characters.
        partial_json: String,
    },
}

/// How an answer ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageEnd {
    /// Why.
    pub stop_reason: Option<StopReason>,
    /// See [`Message::stop_sequence`].
    pub stop_sequence: Option<String>,
}

impl StreamEvent {
    /// The event's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::MessageStart { .. } => "message_start",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop => "message_stop",
            Self::Ping => "ping",
            Self::Error { .. } => "error",
        }
    }

    /// Appends the event as it travels.
    pub fn write(&self, out: &mut BytesMut) {
        sse::write_event(out, self.name(), self);
    }
}
