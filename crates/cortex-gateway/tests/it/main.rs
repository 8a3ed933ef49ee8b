//! All tests of this crate, one module per behaviour.

// A helper that unwraps fails its test, as it should.
#![allow(clippy::unwrap_used)]

mod anthropic;
mod clients;
mod dialect_errors;
mod disconnect;
mod eviction;
mod fault_table;
mod faults;
mod health;
mod keys;
mod lifecycle;
mod metrics;
mod models;
mod placed;
mod places;
mod process;
mod refusals;
mod reload;
mod rig;
mod shutdown;
mod telemetry;
mod tls;
mod transparency;
