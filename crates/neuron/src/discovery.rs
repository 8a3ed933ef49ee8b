//! Facts about this machine that do not change while the daemon runs. Everything that reads text is a pure function over it.

use std::path::Path;

use cortex_core::{DeviceInfo, DeviceKind, Discovery};

use crate::gpu::GpuFacts;

/// What `/proc/meminfo` says, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostMemory {
    /// All of it.
    pub total_bytes: u64,
    /// What new programs can have without swapping.
    pub available_bytes: u64,
}

/// The facts of `/discovery`, for an engine that has `device_names` (`cpu-0`, `cuda-dev-0`).
pub fn discover(device_names: &[String], gpus: &GpuFacts) -> Discovery {
    let cpu = CpuFacts {
        product: cpu_product(&read("/proc/cpuinfo")).unwrap_or_else(|| format!("{} processor", std::env::consts::ARCH)),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        memory_total_bytes: host_memory(&read("/proc/meminfo")).total_bytes,
    };
    Discovery {
        hostname: non_empty(read("/proc/sys/kernel/hostname").trim()).unwrap_or("localhost").to_owned(),
        os: os_line(&read("/etc/os-release"), &read("/proc/sys/kernel/osrelease")),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: uuid::Uuid::new_v4().to_string(),
        driver_version: gpus.driver_version.clone(),
        cuda_version: gpus.cuda_version.clone(),
        gpu_note: gpus.note(device_names),
        devices: device_names.iter().map(|name| device_info(name, &cpu, gpus)).collect(),
        harnesses: vec!["candle".to_owned()],
    }
}

struct CpuFacts {
    product: String,
    threads: usize,
    memory_total_bytes: u64,
}

/// What one of the engine's devices is: `cuda-dev-1` is the driver's GPU 1, everything else is the host.
fn device_info(name: &str, cpu: &CpuFacts, gpus: &GpuFacts) -> DeviceInfo {
    let index = name.rsplit('-').next().and_then(|digits| digits.parse().ok()).unwrap_or(0);
    let gpu = if name.starts_with("cuda-") { gpus.gpus.iter().find(|gpu| gpu.index == index) } else { None };
    match gpu {
        Some(gpu) => DeviceInfo {
            index,
            name: name.to_owned(),
            kind: DeviceKind::Cuda,
            product: gpu.product.clone(),
            memory_total_bytes: gpu.memory_total_bytes,
            compute_capability: gpu.compute_capability.clone(),
        },
        None => DeviceInfo {
            index,
            name: name.to_owned(),
            kind: if name.starts_with("cuda-") { DeviceKind::Cuda } else { DeviceKind::Cpu },
            product: format!("{} ({} threads)", cpu.product, cpu.threads),
            memory_total_bytes: cpu.memory_total_bytes,
            compute_capability: None,
        },
    }
}

/// `NixOS 26.05 (Yarara), Linux 6.18.2`.
pub fn os_line(os_release: &str, kernel: &str) -> String {
    let field = |name: &str| {
        let line = os_release.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='));
        line.map(|value| value.trim_matches(['"', '\''])).and_then(non_empty)
    };
    let system = field("PRETTY_NAME").or_else(|| field("NAME")).unwrap_or("Linux");
    match non_empty(kernel.trim()) {
        Some(kernel) => format!("{system}, Linux {kernel}"),
        None => system.to_owned(),
    }
}

/// The processor's name in `/proc/cpuinfo`; kernels of some architectures tell none.
pub fn cpu_product(cpuinfo: &str) -> Option<String> {
    let value = |names: &[&str]| {
        cpuinfo.lines().filter_map(|line| line.split_once(':')).find(|(name, _)| names.contains(&name.trim())).map(|(_, value)| value)
    };
    let words: Vec<&str> = value(&["model name", "Model", "cpu model", "uarch"])?.split_whitespace().collect();
    non_empty(&words.join(" ")).map(str::to_owned)
}

/// Total and available memory in `/proc/meminfo`; zeros for what it does not name.
pub fn host_memory(meminfo: &str) -> HostMemory {
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok())
    };
    let total = kib("MemTotal").unwrap_or(0);
    // Kernels before 3.14 have no MemAvailable.
    let available = kib("MemAvailable").or_else(|| kib("MemFree")).unwrap_or(0).min(total);
    HostMemory { total_bytes: total * 1024, available_bytes: available * 1024 }
}

/// The file's text, or nothing: a fact that cannot be read is left out, and never keeps the daemon from starting.
pub(crate) fn read(file: impl AsRef<Path>) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

fn non_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Gpu;

    #[test]
    fn the_system_is_named_as_its_files_name_it() {
        let cases = [
            ("NAME=NixOS\nPRETTY_NAME=\"NixOS 26.05 (Yarara)\"\n", "6.18.2\n", "NixOS 26.05 (Yarara), Linux 6.18.2"),
            ("NAME='Alpine Linux'\n", "6.6.1", "Alpine Linux, Linux 6.6.1"),
            ("ID=x\nPRETTY_NAME=\n", "", "Linux"),
            ("", "5.15.0-generic", "Linux, Linux 5.15.0-generic"),
        ];
        for (os_release, kernel, expected) in cases {
            assert_eq!(os_line(os_release, kernel), expected);
        }
    }

    #[test]
    fn the_processor_is_named_where_the_kernel_names_it() {
        let cases = [
            ("processor\t: 0\nmodel name\t: AMD EPYC 9654  96-Core   Processor\n", Some("AMD EPYC 9654 96-Core Processor")),
            ("processor : 0\nBogoMIPS : 50\nModel : Raspberry Pi 5\n", Some("Raspberry Pi 5")),
            ("processor : 0\nBogoMIPS : 50\n", None),
            ("model name :\n", None),
            ("", None),
        ];
        for (cpuinfo, expected) in cases {
            assert_eq!(cpu_product(cpuinfo).as_deref(), expected);
        }
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let cases = [
            ("MemTotal:  1000 kB\nMemFree: 100 kB\nMemAvailable:   400 kB\n", (1000, 400)),
            ("MemTotal:  1000 kB\nMemFree: 100 kB\n", (1000, 100)),
            ("MemTotal: 10 kB\nMemAvailable: 400 kB\n", (10, 10)),
            ("MemTotal: many kB\n", (0, 0)),
            ("", (0, 0)),
        ];
        for (meminfo, (total, available)) in cases {
            assert_eq!(host_memory(meminfo), HostMemory { total_bytes: total * 1024, available_bytes: available * 1024 });
        }
    }

    #[test]
    fn each_device_of_the_engine_gets_the_facts_of_its_hardware() {
        let cpu = CpuFacts { product: "Cpu".into(), threads: 8, memory_total_bytes: 64 };
        let gpu = Gpu { index: 1, product: "RTX 5090".into(), memory_total_bytes: 32, compute_capability: Some("12.0".into()) };
        let gpus = GpuFacts { gpus: vec![gpu], ..GpuFacts::default() };
        let facts = |name: &str| {
            let info = device_info(name, &cpu, &gpus);
            (info.index, info.kind, info.product, info.memory_total_bytes)
        };
        assert_eq!(facts("cpu-0"), (0, DeviceKind::Cpu, "Cpu (8 threads)".to_owned(), 64));
        assert_eq!(facts("cpu-1"), (1, DeviceKind::Cpu, "Cpu (8 threads)".to_owned(), 64));
        assert_eq!(facts("cuda-dev-1"), (1, DeviceKind::Cuda, "RTX 5090".to_owned(), 32));
    }
}
