//! All tests of this crate, one module per behaviour.

mod bench;
mod binary;
mod config;
mod daemon;
mod download;
mod engine;
mod harness;
mod hub;
mod images;
mod packaging;
mod placement;
mod renewal;
mod scripted;
mod service;
mod tls;
