//! NVIDIA GPUs as the driver describes them. A host without a driver is normal and says so in words.

use std::ffi::OsStr;

use cortex_core::DeviceHealth;
use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::error::NvmlError;

/// Where the driver's library is looked for: the loader's own path, then where NixOS keeps it.
const LIBRARIES: [&str; 2] = ["libnvidia-ml.so.1", "/run/opengl-driver/lib/libnvidia-ml.so.1"];

/// The driver's facts; empty on a host without one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuFacts {
    /// `580.95.05`.
    pub driver_version: Option<String>,
    /// `13.0`.
    pub cuda_version: Option<String>,
    /// The GPUs in the driver's order.
    pub gpus: Vec<Gpu>,
    /// Why there is no driver to ask.
    pub absent: Option<String>,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// The driver's number for it.
    pub index: usize,
    /// `NVIDIA H100 80GB HBM3`.
    pub product: String,
    /// Bytes in all.
    pub memory_total_bytes: u64,
    /// `9.0`.
    pub compute_capability: Option<String>,
}

/// The open driver library, or why there is none.
#[derive(Debug)]
pub struct Driver(Result<Nvml, String>);

impl Driver {
    /// Opens the driver's library, if this host has one.
    pub fn open() -> Self {
        let mut last = None;
        for library in LIBRARIES {
            match Nvml::builder().lib_path(OsStr::new(library)).init() {
                Ok(nvml) => return Self(Ok(nvml)),
                Err(NvmlError::LibloadingError(_)) => {}
                Err(error) => last = Some(describe(&error)),
            }
        }
        Self(Err(last.unwrap_or_else(|| format!("no NVIDIA driver found ({})", LIBRARIES[0]))))
    }

    /// Asks for everything that does not change.
    pub fn facts(&self) -> GpuFacts {
        let nvml = match &self.0 {
            Ok(nvml) => nvml,
            Err(absent) => return GpuFacts { absent: Some(absent.clone()), ..GpuFacts::default() },
        };
        let count = nvml.device_count().unwrap_or(0);
        GpuFacts {
            driver_version: nvml.sys_driver_version().ok(),
            cuda_version: nvml.sys_cuda_driver_version().ok().map(|version| format!("{}.{}", version / 1000, version % 1000 / 10)),
            gpus: (0..count).filter_map(|index| gpu(nvml, index).ok()).collect(),
            absent: None,
        }
    }

    /// The figures of GPU `index`, under the name `name`; `None` when the driver does not tell.
    pub fn health(&self, name: &str, index: usize) -> Option<DeviceHealth> {
        let device = self.0.as_ref().ok()?.device_by_index(u32::try_from(index).ok()?).ok()?;
        let memory = device.memory_info().ok()?;
        Some(DeviceHealth {
            name: name.to_owned(),
            memory_used_bytes: memory.used,
            memory_free_bytes: memory.free,
            utilization_percent: device.utilization_rates().ok().map(|rates| rates.gpu),
            temperature_c: device.temperature(TemperatureSensor::Gpu).ok(),
            poisoned: None,
        })
    }
}

impl GpuFacts {
    /// Why no GPU serves, when none of the engine's devices is one.
    pub fn note(&self, device_names: &[String]) -> Option<String> {
        if device_names.iter().any(|name| name.starts_with("cuda-")) {
            return None;
        }
        let why = match (&self.absent, self.gpus.as_slice()) {
            (Some(absent), _) => absent.clone(),
            (None, []) => "the NVIDIA driver reports no GPU".to_owned(),
            (None, [gpu]) => format!("{} found, but not in use: this program was built without CUDA, or its log says why", gpu.product),
            (None, [gpu, ..]) => format!(
                "{} GPUs found ({}, ..), but not in use: this program was built without CUDA, or its log says why",
                self.gpus.len(),
                gpu.product
            ),
        };
        Some(format!("{why}: serving on the CPU"))
    }
}

fn gpu(nvml: &Nvml, index: u32) -> Result<Gpu, NvmlError> {
    let device = nvml.device_by_index(index)?;
    Ok(Gpu {
        index: index as usize,
        product: device.name()?,
        memory_total_bytes: device.memory_info()?.total,
        compute_capability: device.cuda_compute_capability().ok().map(|capability| format!("{}.{}", capability.major, capability.minor)),
    })
}

fn describe(error: &NvmlError) -> String {
    match error {
        NvmlError::DriverNotLoaded => "the NVIDIA driver is installed, but its kernel module is not loaded".to_owned(),
        NvmlError::NoPermission => "this user may not talk to the NVIDIA driver".to_owned(),
        other => format!("the NVIDIA driver does not answer ({other})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_serves_on_the_cpu_says_why() {
        let gpu = |index| Gpu { index, product: "RTX 3060".into(), memory_total_bytes: 1, compute_capability: None };
        let absent = GpuFacts { absent: Some("no NVIDIA driver found (libnvidia-ml.so.1)".into()), ..GpuFacts::default() };
        let with = |gpus| GpuFacts { gpus, ..GpuFacts::default() };
        let cases = [
            (absent.clone(), "cpu-0", Some("no NVIDIA driver found (libnvidia-ml.so.1): serving on the CPU")),
            (with(vec![]), "cpu-0", Some("the NVIDIA driver reports no GPU: serving on the CPU")),
            (
                with(vec![gpu(0)]),
                "cpu-0",
                Some("RTX 3060 found, but not in use: this program was built without CUDA, or its log says why: serving on the CPU"),
            ),
            (
                with(vec![gpu(0), gpu(1)]),
                "cpu-0",
                Some(
                    "2 GPUs found (RTX 3060, ..), but not in use: this program was built without CUDA, or its log says why: serving on the CPU",
                ),
            ),
            (with(vec![gpu(0)]), "cuda-dev-0", None),
        ];
        for (facts, device, expected) in cases {
            assert_eq!(facts.note(&[device.to_owned()]).as_deref(), expected);
        }
    }
}
