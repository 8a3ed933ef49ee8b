//! All tests of this crate, one module per behaviour.

mod config;
mod dashboard;
mod sse;
mod tidy;
