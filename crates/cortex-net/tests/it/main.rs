//! Certificates: what is refused and in which words, and what is read of them.

// A helper that unwraps fails its test, as it should.
#![allow(clippy::unwrap_used)]

mod certificates;
