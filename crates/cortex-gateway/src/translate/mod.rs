//! From Anthropic's dialect to OpenAI's, which the nodes speak, and back. Nothing else knows two dialects, and nothing here performs I/O.

pub(crate) mod error;
mod python_json;
pub(crate) mod request;
pub(crate) mod response;
pub(crate) mod stream;

#[cfg(test)]
mod tests;

pub(crate) use request::{Asked, Chat};
pub(crate) use stream::StreamTranslator;
