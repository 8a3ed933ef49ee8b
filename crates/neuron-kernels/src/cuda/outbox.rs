//! Numbers on their way from the device to whoever waits for them, while the device goes on.

use std::sync::{Arc, Mutex};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, PinnedHostSlice, result, sys};
use candle_core::{Result, Tensor, bail};

use super::Gpu;

/// Pinned memory on the host, used again and again: taking it from the driver each time would cost more than a step.
#[derive(Clone, Default)]
pub struct Outbox(Arc<Mutex<Vec<Stage>>>);

/// A copy that was asked for. May be waited for on any thread.
pub struct Delivery {
    kind: Kind,
    len: usize,
    outbox: Outbox,
}

enum Kind {
    Here(Vec<u32>),
    Coming(Stage),
    Done,
}

/// Where a copy goes, and the event that says it has arrived.
struct Stage {
    words: PinnedHostSlice<u32>,
    address: *mut u32,
    arrived: CudaEvent,
}

// SAFETY: the address is that of the pinned memory beside it, which may be used from any thread, one at a time.
#[allow(unsafe_code)]
unsafe impl Send for Stage {}

impl Outbox {
    /// Asks for a copy of `tensor`, `[N]` u32, as it is once all that was queued before has run.
    ///
    /// # Errors
    /// When the host has no pinned memory left, or the device failed.
    #[allow(unsafe_code)]
    pub fn send(&self, tensor: &Tensor) -> Result<Delivery> {
        let len = tensor.elem_count();
        let Some(gpu) = Gpu::of(tensor.device())? else {
            return Ok(Delivery { kind: Kind::Here(tensor.to_vec1()?), len, outbox: self.clone() });
        };
        let stage = match self.take(len) {
            Some(stage) => stage,
            None => Stage::new(&gpu, len)?,
        };
        let address = gpu.address(tensor)?;
        // SAFETY: the memory has room for `len` numbers, and nobody touches it until the event below has been waited for.
        unsafe { result::memcpy_dtoh_async(std::slice::from_raw_parts_mut(stage.address, len), address, gpu.stream.cu_stream()) }.w()?;
        stage.arrived.record(&gpu.stream).w()?;
        Ok(Delivery { kind: Kind::Coming(stage), len, outbox: self.clone() })
    }

    fn take(&self, len: usize) -> Option<Stage> {
        let mut free = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let fits = free.iter().position(|stage| stage.words.len() >= len)?;
        Some(free.swap_remove(fits))
    }

    fn put_back(&self, stage: Stage) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(stage);
    }
}

impl Stage {
    #[allow(unsafe_code)]
    fn new(gpu: &Gpu, len: usize) -> Result<Self> {
        let context = gpu.stream.context();
        // SAFETY: nobody reads the memory before a copy has arrived in it.
        let mut words = unsafe { context.alloc_pinned_with_flags::<u32>(len.next_power_of_two(), 0) }.w()?;
        let address = words.as_mut_ptr().w()?;
        let arrived = context.new_event(Some(sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC)).w()?;
        Ok(Self { words, address, arrived })
    }
}

impl Delivery {
    /// Waits until it is here.
    ///
    /// # Errors
    /// When the device failed at anything queued before the copy.
    #[allow(unsafe_code)]
    pub fn wait(mut self) -> Result<Vec<u32>> {
        match std::mem::replace(&mut self.kind, Kind::Done) {
            Kind::Here(words) => Ok(words),
            Kind::Coming(stage) => {
                stage.arrived.synchronize().w()?;
                // SAFETY: the copy of so many numbers has arrived, and nothing else writes there until the stage is put back.
                let words = unsafe { std::slice::from_raw_parts(stage.address, self.len) }.to_vec();
                self.outbox.put_back(stage);
                Ok(words)
            }
            Kind::Done => bail!("a delivery is waited for once"),
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Kind::Coming(stage) = &self.kind {
            // Pinned memory must outlive the copy into it. A device that failed copies no more.
            let _ = stage.arrived.synchronize();
        }
    }
}
