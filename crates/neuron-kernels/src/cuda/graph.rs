//! Steps of the same shape as CUDA graphs: recorded once, captured once, replayed from then on.

use std::collections::HashMap;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, sys};
use candle_core::{Device, Result, Tensor, bail};

use super::Gpu;
use super::tape::{Recording, Slot, Tape};

/// The captured steps of one model, by their sizes. They share their memory: no two of them run at a time.
#[derive(Default)]
pub struct StepGraphs {
    graphs: HashMap<(usize, usize), Captured>,
    slots: Vec<Slot>,
}

struct Captured {
    graph: CudaGraph,
    result: Tensor,
}

impl StepGraphs {
    /// Runs `step`, whose kernels read their inputs from the same memory each time that it is called for `key`. On a CPU it is
    /// just called. On a GPU the first call runs it and captures it, and later ones replay the capture; the result is overwritten by the
    /// next run of any step.
    ///
    /// # Errors
    /// When the step fails, or does anything but launch this crate's kernels.
    pub fn run(&mut self, key: (usize, usize), device: &Device, step: impl Fn() -> Result<Tensor>) -> Result<Tensor> {
        let Some(gpu) = Gpu::of(device)? else { return step() };
        if let Some(captured) = self.graphs.get(&key) {
            captured.graph.launch().w()?;
            return Ok(captured.result.clone());
        }
        let (result, recording) = record(&gpu, &step)?;
        let captured = self.capture(&gpu, gpu.address(&result)?, recording, &step)?;
        self.graphs.insert(key, captured);
        Ok(result)
    }

    fn capture(&mut self, gpu: &Gpu, kept: u64, recording: Recording, step: impl Fn() -> Result<Tensor>) -> Result<Captured> {
        let results = recording.plan(kept, &mut self.slots, |count, dtype| gpu.allocate(count.into(), dtype))?;
        *gpu.tape.borrow_mut() = Tape::Replaying { results, next: 0 };
        gpu.stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
        let result = step();
        let graph = gpu.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        *gpu.tape.borrow_mut() = Tape::Off;
        let (result, Some(graph)) = (result?, graph.w()?) else { bail!("the capture of a step came out empty") };
        graph.upload().w()?;
        Ok(Captured { graph, result })
    }
}

fn record(gpu: &Gpu, step: impl Fn() -> Result<Tensor>) -> Result<(Tensor, Recording)> {
    *gpu.tape.borrow_mut() = Tape::Recording(Recording::default());
    let result = step();
    match std::mem::take(&mut *gpu.tape.borrow_mut()) {
        Tape::Recording(recording) => Ok((result?, recording)),
        _ => bail!("a step changed the tape that records it"),
    }
}
