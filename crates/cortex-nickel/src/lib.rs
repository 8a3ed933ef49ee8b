//! `models.ncl`: the contracts, evaluation in a limited child process, messages at the operator's lines, and the program that
//! `cortex placement` starts. The only crate that links Nickel, and nothing depends on it: Nickel takes minutes to compile.

mod checkpoint;
mod child;
pub mod cli;
mod config;
mod diagnostic;
mod duplicate;
mod fields;
mod gguf;
mod nickel;
mod plan;
mod safetensors;
mod source;
