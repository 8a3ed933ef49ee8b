//! Handlers: extract, call, answer.

pub(crate) mod admin;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod embeddings;
pub(crate) mod health;
pub(crate) mod messages;
pub(crate) mod models;
pub(crate) mod rerank;
pub(crate) mod responses;
