//! What a reader of log lines may do to those who speak: nothing.

// A helper that unwraps fails its test, as it should.
#![allow(clippy::unwrap_used)]

mod aside;
