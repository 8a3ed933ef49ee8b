//! All tests of this crate, one module per behaviour.

mod company;
