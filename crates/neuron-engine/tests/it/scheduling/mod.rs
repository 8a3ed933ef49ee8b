//! The scheduler, its blocks and its prefix cache, over a make-believe device.

#![allow(clippy::unwrap_used)] // the helpers here are tests, too

mod batches;
mod blocks;
mod device;
mod histories;
mod scenario;
mod scenarios;
mod simulation;
