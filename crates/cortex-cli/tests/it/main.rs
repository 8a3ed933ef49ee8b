//! All tests of this crate, one module per behaviour.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod commands;
mod documents;
mod serve;
mod support;
mod tls;
