//! The node daemon: configuration, facts about the host, model sources, and the engine behind the API.

pub mod config;
pub mod discovery;
pub mod download;
pub mod gpu;
pub mod health;
pub mod images;
pub mod logging;
pub mod source;

pub use config::NeuronConfig;
