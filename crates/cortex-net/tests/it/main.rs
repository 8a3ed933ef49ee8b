//! Certificates: what is refused and in which words, and what is read of them. Names: where they lead, and when that has changed.

// A helper that unwraps fails its test, as it should.
#![allow(clippy::unwrap_used)]

mod certificates;
mod names;
