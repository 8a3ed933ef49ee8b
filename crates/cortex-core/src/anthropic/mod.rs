//! The Anthropic dialect: the envelopes of `/v1/messages`, as clients write them and as they read the answers.

pub mod answer;
pub mod error;
pub mod messages;
pub mod models;
mod reader;
pub mod stream;

pub use answer::{AnswerBlock, Message, MessageFold, StopReason, Usage};
pub use error::{ErrorAnswer, ErrorKind};
pub use messages::{Block, ImageSource, MessagesRequest, Role, Thinking, Tool, ToolChoice, Turn};
pub use models::{ModelInfo, ModelPage};
pub use reader::RequestError;
pub use stream::{BlockDelta, StreamEvent};
