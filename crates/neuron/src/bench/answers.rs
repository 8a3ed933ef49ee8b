//! Requests and when their tokens came.

use std::cell::Cell;
use std::time::Instant;

use anyhow::bail;
use cortex_core::{GenerateRequest, Prompt, SamplingRequest};
use futures::future::try_join_all;
use neuron_engine::LoadedModel;
use neuron_engine::cache::kv_cache::BLOCK_SIZE;
use neuron_engine::generation::TokenEvent;
use neuron_engine::split_mix;

use super::subject::Subject;

/// One answer.
pub(super) struct Answer {
    submitted: Instant,
    /// When each token came; at least one.
    tokens: Vec<Instant>,
}

impl Answer {
    /// Seconds to the first token.
    pub(super) fn first_s(&self) -> f64 {
        self.tokens.first().map_or(f64::INFINITY, |first| first.duration_since(self.submitted).as_secs_f64())
    }
}

/// Tokens per second of all answers in the time in which every one of them was growing.
pub(super) fn shared_rate(answers: &[Answer]) -> Option<f64> {
    let from = *answers.iter().filter_map(|answer| answer.tokens.first()).max()?;
    let to = *answers.iter().filter_map(|answer| answer.tokens.last()).min()?;
    let tokens = answers.iter().flat_map(|answer| &answer.tokens).filter(|at| **at > from && **at <= to).count();
    (to > from && tokens > 0).then(|| tokens as f64 / to.duration_since(from).as_secs_f64())
}

/// Tokens per second from the first request to the last token.
pub(super) fn total_rate(answers: &[Answer]) -> Option<f64> {
    let from = answers.iter().map(|answer| answer.submitted).min()?;
    let to = *answers.iter().filter_map(|answer| answer.tokens.last()).max()?;
    let tokens: usize = answers.iter().map(|answer| answer.tokens.len()).sum();
    Some(tokens as f64 / to.duration_since(from).as_secs_f64())
}

/// The middle one.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A model and endless different prompts for it.
pub(super) struct Workload {
    model: LoadedModel,
    vocabulary: u64,
    seed: u64,
    prompts: Cell<u64>,
}

impl Workload {
    pub(super) fn new(model: LoadedModel, subject: &Subject) -> Self {
        Self { model, vocabulary: subject.config.vocab_size as u64, seed: subject.seed, prompts: Cell::new(0) }
    }

    pub(super) fn model(&self) -> &LoadedModel {
        &self.model
    }

    pub(super) fn replace(&mut self, model: LoadedModel) {
        self.model = model;
    }

    /// Tokens that the KV cache has room for.
    pub(super) fn room_tokens(&self) -> usize {
        self.model.health().kv_blocks_total as usize * BLOCK_SIZE
    }

    /// Prompts that were never asked before.
    pub(super) fn fresh_prompts(&self, count: usize, len: usize) -> Vec<Vec<u32>> {
        let first = self.prompts.replace(self.prompts.get() + count as u64);
        let token = |prompt: u64, at: usize| (split_mix::bits(self.seed.wrapping_add(prompt), at as u64) % self.vocabulary) as u32;
        (first..first + count as u64).map(|prompt| (0..len).map(|at| token(prompt, at)).collect()).collect()
    }

    /// Asks for `tokens` tokens after each of `prompts`, all at once, greedily, whatever is drawn.
    pub(super) async fn together(&self, prompts: &[Vec<u32>], tokens: usize) -> anyhow::Result<Vec<Answer>> {
        try_join_all(prompts.iter().map(|prompt| self.ask(prompt, tokens))).await
    }

    async fn ask(&self, prompt: &[u32], tokens: usize) -> anyhow::Result<Answer> {
        let request = GenerateRequest {
            model: "bench".into(),
            request_id: "bench".into(),
            prompt: Prompt::Tokens(prompt.to_vec()),
            sampling: SamplingRequest { temperature: Some(0.0), repetition_penalty: Some(1.0), ignore_eos: true, ..Default::default() },
            stop: vec![],
            max_tokens: Some(tokens as u32),
            logprobs: None,
            prompt_logprobs: false,
        };
        let submitted = Instant::now();
        let mut events = self.model.tokens(&request).await?;
        let mut answer = Answer { submitted, tokens: Vec::with_capacity(tokens) };
        while let Some(event) = events.recv().await {
            match event {
                TokenEvent::Started { .. } => {}
                TokenEvent::Token(_) => answer.tokens.push(Instant::now()),
                TokenEvent::Finish { .. } => return Ok(answer),
                TokenEvent::Failed(error) => return Err(error.into()),
            }
        }
        bail!("the engine ended in the middle of an answer")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn answer(start: Instant, submitted_s: u64, tokens_s: &[u64]) -> Answer {
        let at = |s: &u64| start + Duration::from_secs(*s);
        Answer { submitted: at(&submitted_s), tokens: tokens_s.iter().map(at).collect() }
    }

    #[test]
    fn rates_count_what_lies_in_their_time() {
        let start = Instant::now();
        let answers = [answer(start, 0, &[1, 2, 3, 4, 5]), answer(start, 1, &[3, 4, 5, 6, 7])];
        // Both grow from 3 s to 5 s, by two tokens each.
        assert_eq!(shared_rate(&answers), Some(2.0));
        assert_eq!(total_rate(&answers), Some(10.0 / 7.0));
        assert_eq!((answers[0].first_s(), answers[1].first_s()), (1.0, 2.0));
        assert_eq!(shared_rate(&[answer(start, 0, &[1, 2]), answer(start, 0, &[3, 4])]), None);
        assert_eq!((total_rate(&[]), median(vec![3.0, 1.0, 2.0])), (None, 2.0));
    }
}
