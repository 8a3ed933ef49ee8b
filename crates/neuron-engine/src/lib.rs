//! neuron's inference engine: from a request to tokens, without HTTP.
//!
//! Exactly one loop makes tokens ([`engine`]): `schedule -> execute -> commit`. Streaming, whole answers, prefix reuse, tensor
//! parallelism and the kind of device are inputs of that loop, never siblings of it.

pub mod batch;
pub mod cache;
pub mod device;
pub mod engine;
pub mod error;
pub mod frontend;
pub mod generation;
pub mod generation_config;
mod gpu_steps;
pub mod grammar;
pub mod image;
pub mod kv_plan;
pub mod layers;
pub mod load;
pub mod loaded;
pub mod models;
pub mod runner;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
pub mod split_mix;
pub mod stats;
pub mod step_tensors;
pub mod text;
pub mod weights;

pub use device::DeviceSet;
pub use load::{EngineLimits, LoadOptions, Switches, load};
pub use loaded::{LoadedModel, ModelInfo};
