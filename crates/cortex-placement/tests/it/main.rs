//! Behaviour of placement, a module each.

mod decisions;
mod fleet;
mod format;
mod histories;
mod mistakes;
mod proofs;
mod simulations;
