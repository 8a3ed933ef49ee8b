//! The name of every metric, once.
