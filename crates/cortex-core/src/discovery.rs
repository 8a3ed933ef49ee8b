//! What a node says about itself: facts (`GET /discovery`) and figures (`GET /health`).

use serde::{Deserialize, Serialize};

use crate::model::ModelId;

/// Facts that do not change while the daemon runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Discovery {
    /// The machine's name.
    pub hostname: String,
    /// Operating system and kernel.
    pub os: String,
    /// neuron's version.
    pub version: String,
    /// Drawn anew at each start: tells a restarted node from one that went on.
    pub boot_id: String,
    /// NVIDIA driver version, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver_version: Option<String>,
    /// CUDA version of that driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda_version: Option<String>,
    /// Why no GPU is used, in words, where none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_note: Option<String>,
    /// Devices that can hold models.
    pub devices: Vec<DeviceInfo>,
    /// Engines behind the API (`candle`, or `mock`).
    pub harnesses: Vec<String>,
}

/// The two kinds of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// The host's processors.
    Cpu,
    /// One NVIDIA GPU.
    Cuda,
}

/// One device that can hold models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Its number among devices of its kind.
    pub index: usize,
    /// The name of its thread: `cpu-0`, `cuda-dev-0`.
    pub name: String,
    /// CPU or GPU.
    pub kind: DeviceKind,
    /// The product, as the driver or kernel names it.
    pub product: String,
    /// Bytes in all.
    pub memory_total_bytes: u64,
    /// CUDA compute capability (`9.0`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_capability: Option<String>,
}

/// Figures of this moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// Seconds since start.
    pub uptime_s: f64,
    /// False while draining.
    pub ready: bool,
    /// One entry per device.
    pub devices: Vec<DeviceHealth>,
    /// One entry per loaded model.
    pub models: Vec<ModelHealth>,
}

/// Figures of one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceHealth {
    /// As in [`DeviceInfo::name`].
    pub name: String,
    /// Bytes in use, by anyone.
    pub memory_used_bytes: u64,
    /// Bytes free.
    pub memory_free_bytes: u64,
    /// Busy share in percent, where the driver tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utilization_percent: Option<u32>,
    /// Degrees Celsius, where the driver tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_c: Option<u32>,
    /// Why the device refuses work, after an error that sticks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poisoned: Option<String>,
}

/// Figures of one loaded model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelHealth {
    /// The model.
    pub id: ModelId,
    /// Takes requests.
    pub servable: bool,
    /// Sequences in the current batch.
    pub running: u32,
    /// Sequences waiting for a place.
    pub waiting: u32,
    /// KV-cache blocks held by sequences.
    pub kv_blocks_used: u32,
    /// KV-cache blocks in all.
    pub kv_blocks_total: u32,
    /// Tokens generated since load.
    pub generated_tokens_total: u64,
    /// Prompt tokens computed or found since load.
    pub prompt_tokens_total: u64,
    /// Prompt tokens found in the prefix cache since load.
    pub cached_tokens_total: u64,
}
