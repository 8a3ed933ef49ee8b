//! Compiles `kernels/*.cu` and, so that one binary starts with and without a driver, the stand-ins for CUDA's libraries.
//!
//! Only with the feature `cuda`. What it reads of the environment:
//! - `NEURON_CUDA_ARCHS`: compute capabilities to build machine code for, `80,86,89,90,100,120` if absent. The newest also travels as
//!   PTX, which the driver compiles for chips that came later.
//! - `NEURON_CUDA_LINK=toolkit`: link the toolkit's own libraries, as a distribution that always has them does.
//! - `NVCC`: the compiler, otherwise `nvcc` of the toolkit in `CUDA_HOME` or `CUDA_PATH`, or on the `PATH`.

#[path = "build/kernels.rs"]
mod kernels;
#[path = "build/stubs.rs"]
mod stubs;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rerun-if-changed=kernels");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        kernels::compile();
        stubs::build();
    }
}
