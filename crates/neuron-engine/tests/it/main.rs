//! All tests of this crate, one module per behaviour.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]
#![allow(clippy::type_complexity, reason = "a table of cases is read by its rows, not by its type")]

mod chat_template;
mod checkpoints;
mod demo;
mod device_failure;
mod engine;
mod fixtures;
mod forms;
mod model_config;
mod parity;
mod parity_driver;
mod parity_equal;
#[cfg(feature = "cuda")]
mod parity_gpu;
mod pipeline;
mod prompt_logprobs;
mod rerank;
mod sampler;
mod sampler_device;
mod scheduling;
mod tokenizer;
mod vision;
mod weights;
