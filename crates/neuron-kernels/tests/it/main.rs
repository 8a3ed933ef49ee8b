//! All tests of this crate, one module per behaviour.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod company;
#[cfg(feature = "cuda")]
mod cuda;
