//! Large tensors through a ring of stages.

use std::fmt;
use std::rc::Rc;

use candle_core::{Device, Error, Result, Tensor, bail};

use super::Gpu;
use super::stage::Stage;
use crate::staging::Staged;

/// Enough that the device copies without a pause while the next stages are filled.
const STAGES: usize = 4;
/// Bytes of one. Pinned memory takes time to get, so small models get small stages; larger than this does not copy faster.
const STAGE_BYTES_MIN: usize = 1 << 16;
const STAGE_BYTES_MAX: usize = 32 << 20;

/// The way of large tensors to a GPU.
pub struct Staging {
    device: Device,
    stages: Vec<Stage>,
    stage_bytes: usize,
    next: usize,
}

impl Staging {
    /// For `bytes` in all. Absent for a CPU, whose memory is filled where it lies.
    ///
    /// # Errors
    /// When the host has no pinned memory left.
    pub fn new(device: &Device, bytes: u64) -> Result<Option<Self>> {
        let Some(gpu) = Gpu::of(device)? else { return Ok(None) };
        let share = usize::try_from(bytes).unwrap_or(usize::MAX).div_ceil(STAGES).min(STAGE_BYTES_MAX);
        let stage_bytes = share.next_power_of_two().max(STAGE_BYTES_MIN);
        let stages = (0..STAGES).map(|_| Stage::new(&gpu, stage_bytes, 0)).collect::<Result<_>>()?;
        Ok(Some(Self { device: device.clone(), stages, stage_bytes, next: 0 }))
    }

    /// A tensor whose elements `fill` gives, so many at a time as it is asked for, from the first to the last. What comes after in the
    /// device's stream finds them there.
    ///
    /// # Errors
    /// Those of `fill`, and when the device has no memory or fails.
    pub fn tensor<T: Staged, E: From<Error>>(
        &mut self,
        shape: &[usize],
        mut fill: impl FnMut(&mut [T]) -> std::result::Result<(), E>,
    ) -> std::result::Result<Tensor, E> {
        let gpu = self.gpu()?;
        let tensor = gpu.allocate(shape.into(), T::DTYPE)?;
        let mut address = gpu.address(&tensor)?;
        let mut left = tensor.elem_count();
        while left > 0 {
            let len = left.min(self.stage_bytes / size_of::<T>());
            let stage = &mut self.stages[self.next];
            self.next = (self.next + 1) % STAGES;
            fill(stage.elements(len)?)?;
            stage.send(&gpu, len * size_of::<T>(), address)?;
            address += (len * size_of::<T>()) as u64;
            left -= len;
        }
        Ok(tensor)
    }

    fn gpu(&self) -> Result<Rc<Gpu>> {
        match Gpu::of(&self.device)? {
            Some(gpu) => Ok(gpu),
            None => bail!("a staging is made for a GPU"),
        }
    }
}

impl fmt::Debug for Staging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staging").field("stage_bytes", &self.stage_bytes).finish_non_exhaustive()
    }
}
