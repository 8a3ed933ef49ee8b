//! Tokens drawn on the GPU, which are the tokens of the plain form.

use super::gpu;
use candle_core::{Device, Tensor};
use neuron_kernels::sampling::{ALTERNATIVES_MAX, Drawn, Fault, Logprobs, Outcome, Row, Sampler, edits};

fn read(outcome: &Outcome) -> Vec<Result<Drawn, Fault>> {
    outcome.read(&outcome.words().to_vec1().unwrap()).unwrap()
}

/// Numbers that depend on the seed alone.
struct Dice(u64);

impl Dice {
    /// xorshift64*.
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    fn fraction(&mut self) -> f32 {
        self.next() as f32 / 2f32.powi(64)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// Logits of any width, some with many ties, some impossible, rarely a broken one.
    fn logits(&mut self, vocabulary: usize) -> Vec<f32> {
        let (width, grain) = (self.pick(&[0.001, 1.0, 4.0, 30.0]), self.pick(&[0.0, 0.0, 0.25, 1.0]));
        let mut logits: Vec<f32> = (0..vocabulary)
            .map(|_| {
                let x = (self.fraction() + self.fraction() + self.fraction() - 1.5) * 2.0 * width;
                match self.below(50) {
                    0 => f32::NEG_INFINITY,
                    _ if grain > 0.0 => (x / grain).round() * grain,
                    _ => x,
                }
            })
            .collect();
        match self.below(60) {
            0 => logits[self.below(vocabulary as u64) as usize] = f32::NAN,
            1 => logits[self.below(vocabulary as u64) as usize] = f32::INFINITY,
            2 => logits.fill(f32::NEG_INFINITY),
            _ => {}
        }
        logits
    }

    fn row<'a>(&mut self, vocabulary: usize, mask: &'a [u64]) -> Row<'a> {
        let mut row = Row { uniform: self.next(), temperature: self.pick(&[0.0, 0.01, 0.6, 1.0, 1.7, 100.0]), ..Row::greedy() };
        if self.below(2) == 0 {
            row.top_k = self.pick(&[1, 5, 20, 50, 1000, 3000]);
        }
        if self.below(2) == 0 {
            row.top_p = self.pick(&[0.0, 0.1, 0.5, 0.9, 0.95, 0.999_999]);
        }
        if self.below(3) == 0 {
            row.min_p = self.pick(&[0.001, 0.1, 1.0]);
        }
        if self.below(3) == 0 {
            let mut tokens = |count| (0..count).map(|_| self.below(vocabulary as u64 + 2) as u32).collect::<Vec<_>>();
            let (prompt, answer, biased) = (tokens(300), tokens(100), tokens(5));
            let bias: Vec<_> = biased.into_iter().map(|token| (token, self.pick(&[-100.0, -1.5, 2.5, f32::NEG_INFINITY]))).collect();
            row.edits = edits(&prompt, &answer, &bias);
            row.repetition_penalty = self.pick(&[1.0, 1.3]);
            row.frequency_penalty = self.pick(&[0.0, 0.4]);
            row.presence_penalty = self.pick(&[0.0, -0.7]);
        }
        row.allowed = (self.below(4) == 0).then_some(mask);
        row.logprobs = (self.below(3) == 0).then(|| self.pick(&[0, 1, 5, ALTERNATIVES_MAX]));
        row
    }
}

fn close(a: f32, b: f32) -> bool {
    a == b || (a - b).abs() <= 2e-6 * b.abs().max(1.0)
}

#[track_caller]
fn assert_same(got: &Logprobs, want: &Logprobs, name: &str) {
    let ids = |logprobs: &Logprobs| logprobs.top.iter().map(|&(id, _)| id).collect::<Vec<_>>();
    assert_eq!(ids(got), ids(want), "{name}");
    let values = |logprobs: &Logprobs| std::iter::once(logprobs.chosen).chain(logprobs.top.iter().map(|&(_, x)| x)).collect::<Vec<_>>();
    assert!(values(got).into_iter().zip(values(want)).all(|(got, want)| close(got, want)), "{name}: {got:?} for {want:?}");
}

#[test]
fn it_draws_the_tokens_of_the_plain_form_in_any_company() {
    let gpu = gpu();
    let mut dice = Dice(99);
    let (mut sampler, mut checked) = (Sampler::default(), 0);
    // Widths that are whole groups of four and not, of one slice and of many; companies that cut rows differently.
    for (vocabulary, rows, rounds) in [
        (1, 3, 4),
        (5, 7, 60),
        (130, 33, 20),
        (1000, 64, 6),
        (4099, 17, 6),
        (20_000, 5, 10),
        (151_936, 1, 8),
        (151_936, 40, 3),
        (32_768, 300, 1),
    ] {
        for round in 0..rounds {
            let masks: Vec<Vec<u64>> = (0..3)
                .map(|sparse| {
                    (0..usize::div_ceil(vocabulary, 64))
                        .map(|_| (0..sparse).fold(dice.next(), |bits, _| bits & dice.next() & dice.next()))
                        .collect()
                })
                .collect();
            let all: Vec<Row<'_>> = (0..rows).map(|i| dice.row(vocabulary, &masks[i % masks.len()])).collect();
            let logits: Vec<f32> = (0..rows).flat_map(|_| dice.logits(vocabulary)).collect();
            let logits = Tensor::from_vec(logits, (rows, vocabulary), &Device::Cpu).unwrap();
            let want = read(&Sampler::default().draw(&logits, &all).unwrap());
            let outcome = sampler.draw(&logits.to_device(&gpu).unwrap(), &all).unwrap();
            let got = read(&outcome);
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                let name = format!(
                    "row {i} of {rows}, {vocabulary} tokens, round {round}: {:?}",
                    Row { edits: vec![], allowed: None, ..all[i].clone() }
                );
                let token = |drawn: &Result<Drawn, Fault>| drawn.as_ref().map(|drawn| drawn.token).map_err(|fault| *fault);
                assert_eq!(token(got), token(want), "{name}");
                if let (Ok(Drawn { logprobs: Some(got), .. }), Ok(Drawn { logprobs: Some(want), .. })) = (got, want) {
                    assert_same(got, want, &name);
                }
                checked += 1;
            }
        }
    }
    assert!(checked > 2000, "{checked} rows");
}
