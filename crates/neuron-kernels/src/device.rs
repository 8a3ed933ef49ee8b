//! GPUs as whole devices: which there are, their memory, and whether they still answer.

#[cfg(feature = "cuda")]
pub use crate::cuda::device::{check, count, fail, forget, memory, open, probe, release_unused};
#[cfg(not(feature = "cuda"))]
pub use none::{check, count, fail, forget, memory, open, probe, release_unused};

/// Tells why a device does nothing any more, if that is so. Asked on any thread, so it must not wait.
pub type Probe = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// Bytes of a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// In all.
    pub total: u64,
    /// That can still be taken.
    pub free: u64,
}

#[cfg(not(feature = "cuda"))]
mod none {
    use candle_core::{Device, Result, bail};

    use super::{DeviceMemory, Probe};

    /// How many GPUs can be used.
    ///
    /// # Errors
    /// Always: why there is none.
    pub fn count() -> std::result::Result<usize, String> {
        Err("this program was built without CUDA".into())
    }

    /// Opens a GPU.
    ///
    /// # Errors
    /// Always: there is none.
    pub fn open(_ordinal: usize) -> Result<Device> {
        bail!("this program was built without CUDA")
    }

    /// The memory of a GPU; `None` for a CPU.
    ///
    /// # Errors
    /// Never without a GPU.
    pub fn memory(_device: &Device) -> Result<Option<DeviceMemory>> {
        Ok(None)
    }

    /// Waits for the device and gives memory that no tensor uses back to it.
    ///
    /// # Errors
    /// Never without a GPU.
    pub fn release_unused(_device: &Device) -> Result<()> {
        Ok(())
    }

    /// Waits until the device has done all that was asked of it.
    ///
    /// # Errors
    /// Never without a GPU.
    pub fn check(_device: &Device) -> Result<()> {
        Ok(())
    }

    /// Lets go of what this thread keeps for the device.
    pub fn forget(_device: &Device) {}

    /// How to learn why the device does nothing any more.
    ///
    /// # Errors
    /// Never without a GPU.
    pub fn probe(_device: &Device) -> Result<Option<Probe>> {
        Ok(None)
    }

    /// Makes the device fail.
    ///
    /// # Errors
    /// Always: there is no GPU.
    pub fn fail(_device: &Device) -> Result<()> {
        bail!("only a GPU can be made to fail")
    }
}
