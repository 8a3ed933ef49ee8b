//! How tokens are chosen: what a request asks, what a model prefers, and what follows from both.

use serde::{Deserialize, Serialize};

/// What one request asks; absent fields fall back to the model's own defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SamplingRequest {
    /// 0 takes the most probable token.
    pub temperature: Option<f32>,
    /// Smallest set of tokens whose probabilities sum to this.
    pub top_p: Option<f32>,
    /// Only this many tokens; 0 means all.
    pub top_k: Option<u32>,
    /// Only tokens at least this share as probable as the best.
    pub min_p: Option<f32>,
    /// Subtracted once from each token already generated.
    pub presence_penalty: Option<f32>,
    /// Subtracted per occurrence in the answer.
    pub frequency_penalty: Option<f32>,
    /// Divides (positive) or multiplies (negative) the logits of tokens in prompt or answer (CTRL, arXiv:1909.05858).
    pub repetition_penalty: Option<f32>,
    /// Added to the logits of these token ids.
    pub logit_bias: Vec<(u32, f32)>,
    /// The same seed, prompt and parameters give the same text, whatever else is in the batch.
    pub seed: Option<u64>,
    /// Go on after the end-of-turn token (benchmarks).
    pub ignore_eos: bool,
}

/// What a checkpoint's `generation_config.json` prefers.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct SamplingDefaults {
    /// Greedy unless a request says otherwise (`do_sample: false`).
    pub greedy: bool,
    /// As in [`SamplingRequest`].
    pub temperature: Option<f32>,
    /// As in [`SamplingRequest`].
    pub top_p: Option<f32>,
    /// As in [`SamplingRequest`].
    pub top_k: Option<u32>,
    /// As in [`SamplingRequest`].
    pub min_p: Option<f32>,
    /// As in [`SamplingRequest`].
    pub repetition_penalty: Option<f32>,
}

/// Everything decided: what the sampler works from.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub top_k: u32,
    /// 0 keeps all.
    pub min_p: f32,
    /// 0 is off.
    pub presence_penalty: f32,
    /// 0 is off.
    pub frequency_penalty: f32,
    /// 1 is off.
    pub repetition_penalty: f32,
    /// Added to the logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// Drawn by the caller when the request gave none.
    pub seed: u64,
    /// Go on after the end-of-turn token.
    pub ignore_eos: bool,
}

impl SamplingRequest {
    /// The request's wishes over the model's defaults; `fresh_seed` is used when the request names none.
    pub fn resolve(&self, defaults: &SamplingDefaults, fresh_seed: u64) -> SamplingParams {
        let default_temperature = if defaults.greedy { 0.0 } else { defaults.temperature.unwrap_or(1.0) };
        SamplingParams {
            temperature: self.temperature.unwrap_or(default_temperature),
            top_p: self.top_p.or(defaults.top_p).unwrap_or(1.0),
            top_k: self.top_k.or(defaults.top_k).unwrap_or(0),
            min_p: self.min_p.or(defaults.min_p).unwrap_or(0.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0),
            logit_bias: self.logit_bias.clone(),
            seed: self.seed.unwrap_or(fresh_seed),
            ignore_eos: self.ignore_eos,
        }
    }
}

impl SamplingParams {
    /// The most probable token always, no penalties.
    pub fn greedy() -> Self {
        SamplingRequest { temperature: Some(0.0), ..Default::default() }.resolve(&SamplingDefaults::default(), 0)
    }

    /// True when the choice depends on tokens already seen.
    pub fn has_penalties(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 || self.repetition_penalty != 1.0
    }
}
