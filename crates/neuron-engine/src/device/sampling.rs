//! A row for the sampler that works where the logits are, and its answers in the engine's words.

use neuron_kernels::sampling::{Drawn, Fault, Row, edits};

use crate::sampler::{Logprobs, SampleError, SampleRow, Sampled, TokenMask};
use crate::split_mix;

impl<'a> SampleRow<'a> {
    /// The same request for the device.
    pub fn on_device(&self) -> Row<'a> {
        let params = self.params;
        let prompt = if params.repetition_penalty == 1.0 { &[] } else { self.prompt };
        let answer = if params.has_penalties() { self.answer } else { &[] };
        Row {
            temperature: params.temperature,
            top_k: params.top_k,
            min_p: params.min_p,
            top_p: params.top_p,
            repetition_penalty: params.repetition_penalty,
            frequency_penalty: params.frequency_penalty,
            presence_penalty: params.presence_penalty,
            // As many bits as the engine's own draw has.
            uniform: split_mix::bits(params.seed, self.position) >> 11 << 11,
            edits: edits(prompt, answer, &params.logit_bias),
            allowed: self.allowed.map(TokenMask::words),
            logprobs: self.logprobs,
        }
    }
}

impl From<Drawn> for Sampled {
    fn from(drawn: Drawn) -> Self {
        Self { token: drawn.token, logprob: drawn.logprobs.map(|of| Logprobs { chosen: of.chosen, top: of.top }) }
    }
}

impl From<Fault> for SampleError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::NotFinite { token } => Self::NotFinite { token },
            Fault::NoCandidate => Self::NoCandidate,
        }
    }
}
