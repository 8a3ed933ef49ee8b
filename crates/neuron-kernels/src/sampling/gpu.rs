//! The launches of one draw; see `kernels/sample.cu`.

use candle_core::{DType, Device, Result, Tensor};

use super::Row;
use super::outcome::LOGPROB_WORDS;
use super::pack::Packed;
use crate::cuda::{Gpu, Inbox, Launch};

/// As the kernels have them.
const SLICES_MAX: usize = 64;
const STATE_BYTES: usize = 37_536;
const FINISHERS: usize = 512;
const THREADS: usize = 256;

/// Blocks that keep a multiprocessor busy, and the tokens that are worth one.
const BLOCKS_PER_MULTIPROCESSOR: usize = 8;
const SLICE_MIN: usize = 1024;

/// Blocks for the edits of one row.
const EDIT_BLOCKS_MAX: usize = 16;

/// Memory of a draw, as large as the largest so far.
#[derive(Default)]
pub(super) struct Workspace {
    inbox: Inbox,
    states: Option<Tensor>,
    olds: Option<Tensor>,
    outcome: Option<Tensor>,
}

impl Workspace {
    /// Queues the kernels and gives the memory where the outcome will begin.
    pub(super) fn draw(&mut self, gpu: &Gpu, logits: &Tensor, rows: &[Row<'_>], vocabulary: usize) -> Result<Tensor> {
        let packed = Packed::new(rows, vocabulary);
        if packed.rows == 0 {
            return Tensor::zeros(0, DType::U32, &Device::Cpu);
        }
        let input = &self.inbox.put(&packed.words, logits.device())?;
        let rows = packed.rows;
        let step = Step {
            gpu,
            logits: &logits.contiguous()?,
            vocabulary: vocabulary as u32,
            rows: input,
            edits: &tail(input, packed.edits_start())?,
            masks: &tail(input, packed.masks_start())?,
            states: &room(&mut self.states, gpu, rows * STATE_BYTES / size_of::<u32>(), DType::U32)?,
            olds: &room(&mut self.olds, gpu, packed.edits, DType::F32)?,
        };
        let outcome = room(&mut self.outcome, gpu, rows * (2 + LOGPROB_WORDS), DType::U32)?;
        let slices = (BLOCKS_PER_MULTIPROCESSOR * gpu.multiprocessors).div_ceil(rows).min(vocabulary.div_ceil(SLICE_MIN)).min(SLICES_MAX);
        if packed.reports {
            step.kernel("sample_raw_top", slices, rows)?.tensor(step.states)?.go()?;
            step.kernel("sample_raw_mass", slices, rows)?.tensor(step.states)?.go()?;
        }
        if packed.edits > 0 {
            let blocks = packed.edits_max.div_ceil(THREADS).min(EDIT_BLOCKS_MAX);
            step.kernel("sample_edit", blocks, rows)?.tensor(step.edits)?.tensor(step.olds)?.go()?;
        }
        step.kernel("sample_scan", slices, rows)?.tensor(step.masks)?.tensor(step.states)?.go()?;
        if packed.draws {
            step.kernel("sample_weigh", slices, rows)?.tensor(step.states)?.go()?;
        }
        if packed.ranks {
            step.kernel("sample_collect", slices, rows)?.tensor(step.states)?.go()?;
        }
        let finish = step.kernel("sample_finish", rows, 1)?.block(FINISHERS).tensor(step.edits)?.tensor(step.olds)?.tensor(step.states)?;
        let finish = finish.arg(slices as u32).tensor(&outcome)?.tensor(&tail(&outcome, rows)?)?;
        finish.tensor(&tail(&outcome, 2 * rows)?)?.go()?;
        Ok(outcome)
    }
}

/// What the kernels of a draw share.
struct Step<'a> {
    gpu: &'a Gpu,
    logits: &'a Tensor,
    vocabulary: u32,
    rows: &'a Tensor,
    edits: &'a Tensor,
    masks: &'a Tensor,
    states: &'a Tensor,
    olds: &'a Tensor,
}

impl<'a> Step<'a> {
    /// A kernel with the operands that all begin with.
    fn kernel(&self, name: &str, x: usize, y: usize) -> Result<Launch<'a>> {
        Launch::new(self.gpu, name).grid(x, y, 1).block(THREADS).floats(self.logits)?.arg(self.vocabulary).tensor(self.rows)
    }
}

/// What lies behind the first `start` elements.
fn tail(tensor: &Tensor, start: usize) -> Result<Tensor> {
    tensor.narrow(0, start, tensor.elem_count() - start)
}

/// At least `len` elements and never none, whatever is in them. More than that, so that it seldom grows.
fn room(memory: &mut Option<Tensor>, gpu: &Gpu, len: usize, dtype: DType) -> Result<Tensor> {
    match memory {
        Some(memory) if memory.elem_count() >= len => Ok(memory.clone()),
        _ => Ok(memory.insert(gpu.empty(len.next_power_of_two(), dtype)?).clone()),
    }
}
