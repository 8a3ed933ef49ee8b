//! Numbers that change from step to step, at an address that does not.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::PinnedHostSlice;
use candle_core::{DType, Device, Result, Tensor};

use super::Gpu;

/// Uploads that may be under way at a time: one being computed with, one behind it, one being written.
const STAGES: usize = 3;

/// Memory on the device, and pinned memory on the host from which it is filled without waiting.
#[derive(Default)]
pub struct Inbox {
    memory: Option<Tensor>,
    stages: Vec<PinnedHostSlice<u32>>,
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
        // Waits until the copy before the last has left this stage.
        stage.as_mut_slice().w()?[..words.len()].copy_from_slice(words);
        gpu.upload(stage, words.len(), &memory)?;
        memory.narrow(0, 0, words.len())
    }

    #[allow(unsafe_code)]
    fn grow(&mut self, gpu: &Gpu, len: usize) -> Result<Tensor> {
        // Pinned memory is slow to get: it should seldom grow.
        let len = len.next_power_of_two();
        let memory = gpu.allocate(len.into(), DType::U32)?;
        let context = gpu.stream.context();
        // SAFETY: every stage is written before it is uploaded, and only what was written is.
        self.stages = (0..STAGES).map(|_| unsafe { context.alloc_pinned::<u32>(len) }.w()).collect::<Result<_>>()?;
        self.next = 0;
        self.memory = Some(memory.clone());
        Ok(memory)
    }
}

impl Gpu {
    /// Queues a copy of the first `len` numbers of a stage to the beginning of `memory`.
    #[allow(unsafe_code)]
    fn upload(&self, stage: &PinnedHostSlice<u32>, len: usize, memory: &Tensor) -> Result<()> {
        use candle_core::cuda_backend::cudarc::driver::{HostSlice, result};
        let address = self.address(memory)?;
        // SAFETY: the stage is pinned and outlives the copy: its own event, recorded when the guard drops, is waited for before it is
        // written again or freed; the memory has at least `len` elements.
        unsafe {
            let (words, _copied) = stage.stream_synced_slice(&self.stream);
            result::memcpy_htod_async(address, &words[..len], self.stream.cu_stream()).w()
        }
    }
}
