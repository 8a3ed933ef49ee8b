//! Pinned memory of the host, from which the device copies on its own time.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, PinnedHostSlice, result};
use candle_core::{Result, bail};

use super::Gpu;
use crate::staging::Staged;

/// So much memory, and when the device is done with it.
pub(super) struct Stage {
    memory: PinnedHostSlice<u8>,
    address: *mut u8,
    /// Recorded behind each copy. The one that `memory` has of its own is not: event tracking is off.
    copied: CudaEvent,
}

// SAFETY: the address is that of the pinned memory beside it, which may be used from any thread, one at a time.
#[allow(unsafe_code)]
unsafe impl Send for Stage {}

impl Stage {
    /// All zeros; `flags` are the driver's.
    #[allow(unsafe_code)]
    pub(super) fn new(gpu: &Gpu, bytes: usize, flags: u32) -> Result<Self> {
        let context = gpu.stream.context();
        // SAFETY: written right below, before anything reads it.
        let mut memory = unsafe { context.alloc_pinned_with_flags::<u8>(bytes, flags) }.w()?;
        let address = memory.as_mut_ptr().w()?;
        // SAFETY: the memory has so many bytes and is nobody else's.
        unsafe { address.write_bytes(0, bytes) };
        Ok(Self { memory, address, copied: context.new_event(None).w()? })
    }

    /// Its first `len` elements, to be written. Waits for the last copy.
    #[allow(unsafe_code)]
    pub(super) fn elements<T: Staged>(&mut self, len: usize) -> Result<&mut [T]> {
        self.check(len * size_of::<T>())?;
        self.copied.synchronize().w()?;
        // SAFETY: pages are aligned for every number, all bits are numbers of `T`, and no copy is under way.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.address.cast(), len) })
    }

    /// Queues a copy of its first `bytes` to `address` on the device, where the caller knows that they have room.
    #[allow(unsafe_code)]
    pub(super) fn send(&mut self, gpu: &Gpu, bytes: usize, address: u64) -> Result<()> {
        self.check(bytes)?;
        // SAFETY: the memory is written and freed only after the event below has been waited for.
        unsafe { result::memcpy_htod_async(address, std::slice::from_raw_parts(self.address, bytes), gpu.stream.cu_stream()) }.w()?;
        self.copied.record(&gpu.stream).w()
    }

    fn check(&self, bytes: usize) -> Result<()> {
        match bytes <= self.memory.len() {
            true => Ok(()),
            false => bail!("{bytes} bytes for a stage of {}", self.memory.len()),
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // A device that failed copies no more.
        let _ = self.copied.synchronize();
    }
}
