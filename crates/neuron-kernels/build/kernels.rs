//! `kernels/<name>.cu` to one fat binary each, and a Rust table of them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const ARCHS: &str = "80,86,89,90,100,120";

/// Compiles all kernels, a few at a time, into `OUT_DIR`, with `modules.rs` naming them.
pub(crate) fn compile() {
    for name in ["NEURON_CUDA_ARCHS", "NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut sources: Vec<PathBuf> =
        fs::read_dir("kernels").expect("the folder of kernels").map(|entry| entry.expect("a file").path()).collect();
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    sources.sort();
    let jobs: usize = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    for some in sources.chunks(jobs.max(1)) {
        let running: Vec<_> = some.iter().map(|source| start(source, &out)).collect();
        for (source, mut nvcc) in some.iter().zip(running) {
            let status = nvcc.wait().expect("nvcc runs");
            assert!(status.success(), "nvcc could not compile {}: {status}", source.display());
        }
    }
    fs::write(out.join("modules.rs"), table(&sources)).expect("OUT_DIR can be written");
}

fn start(source: &Path, out: &Path) -> std::process::Child {
    let archs = env::var("NEURON_CUDA_ARCHS").unwrap_or_else(|_| ARCHS.into());
    let archs: Vec<&str> = archs.split(',').map(str::trim).collect();
    let mut nvcc = Command::new(compiler());
    nvcc.args(["-fatbin", "-O3", "-std=c++17", "--threads", "0"])
        .arg(source)
        .arg("-o")
        .arg(out.join(stem(source)).with_extension("fatbin"));
    for arch in &archs {
        // Hopper's own instructions (warp-group products) belong to no other chip.
        let own = if *arch == "90" { "a" } else { "" };
        nvcc.arg(format!("-gencode=arch=compute_{arch}{own},code=sm_{arch}{own}"));
    }
    if let Some(newest) = archs.last() {
        nvcc.arg(format!("-gencode=arch=compute_{newest},code=compute_{newest}"));
    }
    let help = "the feature `cuda` needs nvcc of CUDA 12.8 or newer: set CUDA_HOME, or build without the feature";
    nvcc.spawn().unwrap_or_else(|error| panic!("{error}: {help}"))
}

fn compiler() -> PathBuf {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let found = homes.map(|home| Path::new(&home).join("bin/nvcc")).find(|nvcc| nvcc.exists());
    found.unwrap_or_else(|| "nvcc".into())
}

fn table(sources: &[PathBuf]) -> String {
    let mut table = String::from("pub(super) const MODULES: &[(&str, &[u8])] = &[\n");
    for source in sources {
        let name = stem(source);
        let _ = writeln!(table, "    (\"{name}\", include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}.fatbin\"))),");
    }
    table + "];\n"
}

fn stem(source: &Path) -> &str {
    source.file_stem().and_then(|stem| stem.to_str()).expect("a kernel's file has a plain name")
}
