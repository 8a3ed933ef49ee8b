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
pub mod image;
pub mod layers;
pub mod models;
pub mod runner;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
pub mod text;
pub mod weights;
