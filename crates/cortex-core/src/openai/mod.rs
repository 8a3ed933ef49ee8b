//! The OpenAI dialect: the envelopes of `/v1/*`, as neuron answers them and as cortex passes them through.

pub mod error;
pub mod models;

pub use error::ApiError;
pub use models::{ModelEntry, ModelList};
