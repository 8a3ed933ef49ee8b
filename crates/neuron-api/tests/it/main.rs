//! All tests of this crate, one module per behaviour.

mod answers;
mod bad_input;
mod client;
mod embeddings;
mod lifecycle;
mod node;
mod requests;
mod sockets;
mod streams;
mod support;
