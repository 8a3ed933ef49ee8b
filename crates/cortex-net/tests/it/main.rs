//! Certificates: what is refused and in which words, and what is read of them. Names: where they lead, and when that has changed.
//! Connections: which are used again. Answers: read as hyper reads them.

// A helper that unwraps fails its test, as it should.
#![allow(clippy::unwrap_used)]

mod answers;
mod certificates;
mod names;
mod pool;
