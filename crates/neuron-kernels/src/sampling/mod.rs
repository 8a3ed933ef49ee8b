//! From rows of logits to tokens, where the logits are.
//!
//! The order is that of the engine's own sampler: penalties, bias, allowed tokens, temperature, top-k, min-p, top-p, and the draw in the
//! order of ids; ties rank by lower id; log-probabilities are taken from the logits as they came. Probabilities are whole numbers: the
//! most probable token counts 2^44, and sums of counts come out the same in any order. So a row gives the same token however it is cut
//! up, in any company, and on every device.

use candle_core::{DType, Device, Result, Tensor, bail};

mod edit;
#[cfg(feature = "cuda")]
mod gpu;
mod outcome;
#[cfg(feature = "cuda")]
mod pack;
mod plain;
mod weight;

pub use edit::{Edit, edits};
pub use outcome::{Drawn, Fault, Logprobs, Outcome};
pub use weight::weight;

/// Most alternatives that are reported beside a token.
pub const ALTERNATIVES_MAX: u8 = 20;

/// Most tokens that a row may have: so many weights of 1 still add up in 64 bits.
const VOCABULARY_MAX: usize = 1 << 19;

/// How one row chooses.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    /// 0 takes the most probable token.
    pub temperature: f32,
    /// Only this many; 0 keeps all.
    pub top_k: u32,
    /// Only tokens at least this share as probable as the best; 0 keeps all.
    pub min_p: f32,
    /// The smallest set whose share reaches this; 1 keeps all.
    pub top_p: f32,
    /// 1 is off.
    pub repetition_penalty: f32,
    /// 0 is off.
    pub frequency_penalty: f32,
    /// 0 is off.
    pub presence_penalty: f32,
    /// The random number in [0, 1) that draws, times 2^64.
    pub uniform: u64,
    /// What the penalties and the bias touch; see [`edits`].
    pub edits: Vec<Edit>,
    /// One bit for each token that may be drawn, 64 to a word, none past the last word; absent: all.
    pub allowed: Option<&'a [u64]>,
    /// Report log-probabilities, with this many alternatives.
    pub logprobs: Option<u8>,
}

impl Row<'_> {
    /// The most probable token, nothing else.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            min_p: 0.0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            uniform: 0,
            edits: Vec::new(),
            allowed: None,
            logprobs: None,
        }
    }

    fn top_k(&self, vocabulary: usize) -> Option<usize> {
        (1..vocabulary).contains(&(self.top_k as usize)).then_some(self.top_k as usize)
    }

    /// The share that the nucleus reaches, times 2^64.
    fn top_p(&self) -> Option<u64> {
        (self.top_p < 1.0).then(|| (f64::from(self.top_p) * 2f64.powi(64)) as u64)
    }

    fn min_weight(&self) -> f32 {
        self.min_p.min(1.0)
    }
}

/// What drawing needs on a device, kept from step to step.
#[derive(Default)]
pub struct Sampler {
    #[cfg(feature = "cuda")]
    workspace: gpu::Workspace,
}

impl Sampler {
    /// Draws one token for each row of `logits`, `[R, V]` f32, which is scratch afterwards. On a GPU the work is only queued.
    ///
    /// On a GPU the outcome is overwritten by the next call; its tokens lie at the same address as long as no call has more rows
    /// than one before.
    ///
    /// # Errors
    /// When the shapes do not fit together, or the device fails.
    pub fn draw(&mut self, logits: &Tensor, rows: &[Row<'_>]) -> Result<Outcome> {
        let vocabulary = check(logits, rows)?;
        let asked = rows.iter().map(|row| row.logprobs).collect();
        #[cfg(feature = "cuda")]
        if let Some(gpu) = crate::cuda::Gpu::of(logits.device())? {
            return Outcome::new(&self.workspace.draw(&gpu, logits, rows, vocabulary)?, asked);
        }
        let logits = logits.flatten_all()?.to_vec1::<f32>()?;
        let words = plain::draw(&logits, rows, vocabulary);
        Outcome::new(&Tensor::new(words, &Device::Cpu)?, asked)
    }
}

fn check(logits: &Tensor, rows: &[Row<'_>]) -> Result<usize> {
    let vocabulary = match (logits.dims(), logits.dtype()) {
        (&[r, v], DType::F32) if r == rows.len() => v,
        (dims, dtype) => bail!("draw: logits must be [{}, V] f32, got {dims:?} {}", rows.len(), dtype.as_str()),
    };
    if vocabulary == 0 || vocabulary > VOCABULARY_MAX {
        bail!("draw: from 1 to {VOCABULARY_MAX} tokens, got {vocabulary}");
    }
    for (i, row) in rows.iter().enumerate() {
        if let Some(asked) = row.logprobs.filter(|&asked| asked > ALTERNATIVES_MAX) {
            bail!("draw: row {i} asks for {asked} alternatives, at most {ALTERNATIVES_MAX} are reported");
        }
        if !row.edits.is_sorted_by_key(|edit| edit.token) {
            bail!("draw: the edits of row {i} are not sorted by token");
        }
    }
    Ok(vocabulary)
}

#[cfg(test)]
mod tests;
