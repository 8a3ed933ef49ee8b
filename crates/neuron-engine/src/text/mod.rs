//! Between text and tokens: the chat template, the tokenizer, and back again piece by piece.

mod arguments;
pub mod chat_template;
pub mod detokenizer;
pub mod parser;
mod python;
pub mod stop;
mod strftime;
mod template_env;
pub mod tokenizer;

pub use chat_template::{ChatTemplate, TemplateError};
pub use detokenizer::Detokenizer;
pub use parser::{AnswerParser, Markup, Piece, ToolForm};
pub use stop::{StopMatcher, StopOutcome};
pub use tokenizer::{TokenizeError, Tokenizer};
