//! The sampler of devices beside the engine's own: two ways to the same token.

use candle_core::{Device, Tensor};
use cortex_core::sampling::SamplingParams;
use neuron_engine::sampler::{Logprobs, SampleError, SampleRow, Sampled, TokenMask, sample};
use neuron_kernels::sampling::Sampler;

/// Numbers that depend on the seed alone.
struct Dice(u64);

impl Dice {
    /// Below `end`, by xorshift64*.
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((u128::from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)) * u128::from(end)) >> 64) as u64
    }

    fn fraction(&mut self) -> f32 {
        self.below(1 << 24) as f32 / (1 << 24) as f32
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    fn tokens(&mut self, count: usize, end: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(end as u64) as u32).collect()
    }

    /// Logits of any width, some with many ties, some impossible, rarely a broken one.
    fn logits(&mut self, vocabulary: usize) -> Vec<f32> {
        let (width, grain) = (self.pick(&[0.001, 1.0, 4.0, 30.0]), self.pick(&[0.0, 0.0, 0.25, 1.0]));
        let mut one = || {
            let x = (self.fraction() + self.fraction() + self.fraction() - 1.5) * 2.0 * width;
            match self.below(50) {
                0 => f32::NEG_INFINITY,
                _ if grain > 0.0 => (x / grain).round() * grain,
                _ => x,
            }
        };
        let mut logits: Vec<f32> = (0..vocabulary).map(|_| one()).collect();
        match self.below(60) {
            0 => logits[self.below(vocabulary as u64) as usize] = f32::NAN,
            1 => logits[self.below(vocabulary as u64) as usize] = f32::INFINITY,
            2 => logits.fill(f32::NEG_INFINITY),
            _ => {}
        }
        logits
    }

    fn params(&mut self, vocabulary: usize) -> SamplingParams {
        let bias = if self.below(4) == 0 { self.tokens(6, vocabulary + 2) } else { Vec::new() };
        SamplingParams {
            temperature: self.pick(&[0.0, 0.01, 0.6, 1.0, 1.7, 100.0]),
            top_k: self.pick(&[0, 0, 1, 5, 20, 1000]),
            top_p: self.pick(&[1.0, 1.0, 0.0, 0.1, 0.5, 0.95, 0.999_999]),
            min_p: self.pick(&[0.0, 0.0, 0.001, 0.1, 1.0]),
            repetition_penalty: self.pick(&[1.0, 1.0, 1.3, 0.7]),
            frequency_penalty: self.pick(&[0.0, 0.0, 0.4]),
            presence_penalty: self.pick(&[0.0, 0.0, -0.7]),
            logit_bias: bias.into_iter().map(|token| (token, self.pick(&[-100.0, -1.5, 2.5, 1e38, f32::NEG_INFINITY]))).collect(),
            seed: self.below(1 << 40),
            ignore_eos: false,
        }
    }
}

/// What one row is drawn from.
struct Case {
    logits: Vec<f32>,
    params: SamplingParams,
    prompt: Vec<u32>,
    answer: Vec<u32>,
    allowed: Option<TokenMask>,
    logprobs: Option<u8>,
}

impl Case {
    fn new(dice: &mut Dice, vocabulary: usize) -> Self {
        let allowed = (dice.below(4) == 0).then(|| {
            // A grammar knows the tokenizer's ids, of which there may be fewer.
            let mut mask = TokenMask::none(vocabulary - vocabulary / 3);
            dice.tokens(vocabulary / 4 + 1, vocabulary).into_iter().for_each(|token| mask.allow(token));
            mask
        });
        Self {
            logits: dice.logits(vocabulary),
            params: dice.params(vocabulary),
            prompt: dice.tokens(30, vocabulary + 2),
            answer: dice.tokens(20, vocabulary + 2),
            allowed,
            logprobs: (dice.below(3) == 0).then(|| dice.pick(&[0, 1, 5, 20])),
        }
    }

    fn row(&self) -> SampleRow<'_> {
        let (params, prompt, answer) = (&self.params, &self.prompt[..], &self.answer[..]);
        SampleRow { params, position: 3, prompt, answer, logprobs: self.logprobs, allowed: self.allowed.as_ref() }
    }
}

#[track_caller]
fn assert_same(got: Result<Sampled, SampleError>, want: Result<Sampled, SampleError>, what: &SamplingParams) {
    let token = |drawn: &Result<Sampled, SampleError>| drawn.as_ref().map(|drawn| drawn.token).map_err(|error| *error);
    assert_eq!(token(&got), token(&want), "{what:?}");
    let of = |drawn: Result<Sampled, SampleError>| drawn.ok().and_then(|drawn| drawn.logprob);
    let values = |of: &Logprobs| std::iter::once(of.chosen).chain(of.top.iter().map(|&(_, value)| value)).collect::<Vec<_>>();
    let ids = |of: &Logprobs| of.top.iter().map(|&(id, _)| id).collect::<Vec<_>>();
    match (of(got), of(want)) {
        (Some(got), Some(want)) => {
            assert_eq!(ids(&got), ids(&want));
            let close = |(a, b): (f32, f32)| a == b || (a - b).abs() <= 1e-6 * b.abs().max(1.0);
            assert!(values(&got).into_iter().zip(values(&want)).all(close), "{got:?} for {want:?}");
        }
        (got, want) => assert_eq!(got, want),
    }
}

#[test]
fn the_sampler_of_devices_draws_the_engines_tokens() {
    let mut dice = Dice(7);
    for (vocabulary, count) in [(1, 50), (2, 100), (5, 500), (130, 1000), (1001, 1000), (4096, 150)] {
        let cases: Vec<Case> = (0..count).map(|_| Case::new(&mut dice, vocabulary)).collect();
        let logits: Vec<f32> = cases.iter().flat_map(|case| case.logits.clone()).collect();
        let logits = Tensor::from_vec(logits, (count, vocabulary), &Device::Cpu).unwrap();
        let rows: Vec<_> = cases.iter().map(|case| case.row().on_device()).collect();
        let outcome = Sampler::default().draw(&logits, &rows).unwrap();
        let drawn = outcome.read(&outcome.words().to_vec1().unwrap()).unwrap();
        for (case, drawn) in cases.iter().zip(drawn) {
            let own = sample(&mut case.logits.clone(), &case.row());
            assert_same(drawn.map(Sampled::from).map_err(SampleError::from), own, &case.params);
        }
    }
}
