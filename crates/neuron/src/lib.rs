//! The node daemon: configuration, facts about the host, model sources, and the engine behind the API.

pub mod config;
pub mod logging;

pub use config::NeuronConfig;
