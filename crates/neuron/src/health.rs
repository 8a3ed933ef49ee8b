//! Figures of this moment: each device's memory, as the kernel or the driver tells it.

use cortex_core::DeviceHealth;

use crate::discovery::{HostMemory, host_memory, read};
use crate::gpu::Driver;

/// The figures of each of the engine's devices, in their order; `faults` says why some do nothing any more.
pub fn devices(device_names: &[String], faults: Vec<Option<String>>, driver: &Driver) -> Vec<DeviceHealth> {
    let host = host_memory(&read("/proc/meminfo"));
    let faults = faults.into_iter().chain(std::iter::repeat(None));
    device_names.iter().zip(faults).map(|(name, poisoned)| DeviceHealth { poisoned, ..device(name, host, driver) }).collect()
}

fn device(name: &str, host: HostMemory, driver: &Driver) -> DeviceHealth {
    let gpu = name.strip_prefix("cuda-dev-").and_then(|index| driver.health(name, index.parse().ok()?));
    gpu.unwrap_or_else(|| host_health(name, host))
}

/// The host's memory as a device: free is what new programs can have, used is the rest.
pub fn host_health(name: &str, host: HostMemory) -> DeviceHealth {
    DeviceHealth {
        name: name.to_owned(),
        memory_used_bytes: host.total_bytes - host.available_bytes,
        memory_free_bytes: host.available_bytes,
        utilization_percent: None,
        temperature_c: None,
        poisoned: None,
    }
}
