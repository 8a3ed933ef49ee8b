//! The CUDA side of the ops: one [`Gpu`] for each device that this thread works with, and what its kernels need to be launched.
//!
//! Kernels, their argument lists and their launches are kept together in `op/`; the table tests run each of them.

pub(crate) mod attention;
mod blas;
pub(crate) mod device;
pub(crate) mod gemv;
mod gpu;
mod graph;
mod inbox;
mod launch;
mod modules;
pub(crate) mod nccl;
mod outbox;
mod stage;
mod staging;
mod tape;

pub(crate) use blas::Product;
pub(crate) use gpu::{Gpu, suffix};
pub use graph::StepGraphs;
pub use inbox::Inbox;
pub(crate) use launch::Launch;
pub use outbox::{Delivery, Outbox};
pub use staging::Staging;
