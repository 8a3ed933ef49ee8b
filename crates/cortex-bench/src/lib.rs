//! A load generator that speaks only HTTP, so that it can measure cortex, neuron, and any other OpenAI-compatible server alike.

pub mod report;
pub mod run;
pub mod target;
pub mod workload;
