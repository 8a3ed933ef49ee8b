//! What models are made of. Tensor parallelism lives here: a layer holds this rank's part and meets the other ranks itself, so a model file
//! reads the same for one device and for eight.

pub mod attention;
pub mod embedding;
pub mod layer_norm;
pub mod linear;
pub mod mlp;
pub mod moe;
pub mod ranks;
pub mod rms_norm;
pub mod rotary;
