//! The compiled kernels that travel inside the binary.

include!(concat!(env!("OUT_DIR"), "/modules.rs"));
