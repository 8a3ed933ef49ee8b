//! Numbers that change from step to step, at an address that does not.

use candle_core::cuda_backend::cudarc::driver::sys;
use candle_core::{DType, Device, Result, Tensor};

use super::Gpu;
use super::stage::Stage;

/// Uploads that may be under way at a time: one being computed with, one behind it, one being written.
const STAGES: usize = 3;

/// Memory on the device, and pinned memory on the host from which it is filled without waiting.
#[derive(Default)]
pub struct Inbox {
    memory: Option<Tensor>,
    stages: Vec<Stage>,
    next: usize,
}

impl Inbox {
    /// The numbers as a tensor `[N]` on the device; the one given out before is overwritten, in the order of the stream. It lies at the
    /// same address as long as no call needs more room than the first.
    ///
    /// # Errors
    /// When the device has no memory for them.
    pub fn put(&mut self, words: &[u32], device: &Device) -> Result<Tensor> {
        let Some(gpu) = Gpu::of(device)? else { return Tensor::new(words, device) };
        let memory = match &self.memory {
            Some(memory) if memory.elem_count() >= words.len() => memory.clone(),
            _ => self.grow(&gpu, words.len())?,
        };
        let stage = &mut self.stages[self.next];
        self.next = (self.next + 1) % STAGES;
        stage.elements(words.len())?.copy_from_slice(words);
        stage.send(&gpu, size_of_val(words), gpu.address(&memory)?)?;
        memory.narrow(0, 0, words.len())
    }

    fn grow(&mut self, gpu: &Gpu, len: usize) -> Result<Tensor> {
        // Pinned memory is slow to get: it should seldom grow.
        let len = len.next_power_of_two();
        let memory = gpu.allocate(len.into(), DType::U32)?;
        // The host only writes it: its caches need not hold it.
        let stage = |_| Stage::new(gpu, len * size_of::<u32>(), sys::CU_MEMHOSTALLOC_WRITECOMBINED);
        self.stages = (0..STAGES).map(stage).collect::<Result<_>>()?;
        self.next = 0;
        self.memory = Some(memory.clone());
        Ok(memory)
    }
}
