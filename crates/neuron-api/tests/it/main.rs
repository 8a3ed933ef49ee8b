//! All tests of this crate, one module per behaviour.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail like tests")]
#![allow(clippy::needless_pass_by_value, reason = "a body is written where it is sent")]

mod answers;
mod bad_input;
mod client;
mod embeddings;
mod lifecycle;
mod node;
mod requests;
mod rerank;
mod sockets;
mod streams;
mod support;
