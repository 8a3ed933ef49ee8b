//! All tests of this crate, one module per behaviour.

mod config;
mod download;
mod hub;
mod images;
