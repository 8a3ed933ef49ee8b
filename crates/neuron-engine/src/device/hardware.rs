//! What a device thread needs of the hardware under it. Tests bring hardware that fails when they say so.

use candle_core::{Device, Result};
pub use neuron_kernels::device::Probe;

/// One device. Called on the device's own thread.
pub trait Hardware: Send + 'static {
    /// Opens it.
    fn open(&self) -> Result<Device>;
    /// How to learn whether it still works; `None` for what does not fail alone.
    fn probe(&self, device: &Device) -> Result<Option<Probe>>;
    /// Makes it fail, for tests.
    fn fail(&self, device: &Device) -> Result<()>;
}

/// The processors.
pub(super) struct Host;

/// GPU number so and so.
#[derive(Clone, Copy, Debug)]
pub struct Gpu(pub usize);

impl Hardware for Host {
    fn open(&self) -> Result<Device> {
        Ok(Device::Cpu)
    }

    fn probe(&self, _: &Device) -> Result<Option<Probe>> {
        Ok(None)
    }

    fn fail(&self, _: &Device) -> Result<()> {
        candle_core::bail!("a processor does not fail alone")
    }
}

impl Hardware for Gpu {
    fn open(&self) -> Result<Device> {
        neuron_kernels::device::open(self.0)
    }

    fn probe(&self, device: &Device) -> Result<Option<Probe>> {
        neuron_kernels::device::probe(device)
    }

    fn fail(&self, device: &Device) -> Result<()> {
        neuron_kernels::device::fail(device)
    }
}
