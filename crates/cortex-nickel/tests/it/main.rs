//! The program, as operators run it.

// A helper that unwraps fails its test, as it should.
#![allow(clippy::unwrap_used)]

mod commands;
mod limits;
mod mistakes;
mod program;
