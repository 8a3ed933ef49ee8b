//! The OpenAI dialect: the envelopes of `/v1/*`, as neuron answers them and as cortex passes them through.

pub mod chat;
pub mod completions;
pub mod embeddings;
pub mod error;
pub mod fields;
pub mod models;
pub mod options;
pub mod rerank;
pub mod tool_call;
pub mod usage;

pub use chat::{ChatChunk, ChatCompletion, ChatFold, ChatRequest};
pub use completions::{Completion, CompletionFold, CompletionRequest};
pub use embeddings::{EmbeddingList, EmbeddingRequest};
pub use error::{ApiError, ErrorBody};
pub use fields::Fields;
pub use models::{ModelEntry, ModelList};
pub use options::GenerateOptions;
pub use usage::CompletionUsage;
