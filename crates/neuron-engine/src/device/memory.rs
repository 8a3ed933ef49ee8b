//! How much memory a device has.

use std::fs;

use candle_core::{Device, Result, bail};

/// Bytes of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes in all.
    pub total: u64,
    /// Bytes that can still be taken without hurting anyone.
    pub free: u64,
}

/// The memory behind a device. A GPU first gives back what it holds without use.
pub fn memory_of(device: &Device) -> Result<Memory> {
    neuron_kernels::device::release_unused(device)?;
    match neuron_kernels::device::memory(device)? {
        Some(memory) => Ok(Memory { total: memory.total, free: memory.free }),
        None => match host_memory() {
            Some(memory) => Ok(memory),
            None => bail!("/proc/meminfo does not tell how much memory there is"),
        },
    }
}

/// The host's memory, from `/proc/meminfo`; `None` where the kernel does not tell.
pub fn host_memory() -> Option<Memory> {
    parse_meminfo(&fs::read_to_string("/proc/meminfo").ok()?)
}

/// Reads `MemTotal` and `MemAvailable`, both in KiB.
pub fn parse_meminfo(text: &str) -> Option<Memory> {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Some(Memory { total: bytes("MemTotal")?, free: bytes("MemAvailable")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_bytes() {
        let text = "MemTotal:       24696096 kB\nMemFree:        1000 kB\nMemAvailable:   20000000 kB\n";
        assert_eq!(parse_meminfo(text), Some(Memory { total: 24_696_096 * 1024, free: 20_000_000 * 1024 }));
        assert_eq!(parse_meminfo("MemTotal: 3 kB"), None);
        assert_eq!(parse_meminfo(""), None);
    }
}
