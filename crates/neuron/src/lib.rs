//! The node daemon: configuration, facts about the host, model sources, and the engine behind the API.
//!
//! [`Daemon::start`] is everything that the `neuron` binary does, for use in another process.

pub mod backend;
pub mod bench;
pub mod candle;
pub mod config;
pub mod daemon;
pub mod discovery;
pub mod download;
pub mod gpu;
pub mod harness;
pub mod health;
pub mod images;
pub mod logging;
pub mod metrics;
pub mod preload;
pub mod pulse;
mod registry;
pub mod renewal;
pub mod source;

pub use config::NeuronConfig;
pub use daemon::{Daemon, Ended, RunningDaemon};
pub use harness::CandleHarness;
