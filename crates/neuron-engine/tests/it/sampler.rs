//! The sampler against exact distributions, small tables, and the references' greedy tokens.

use std::collections::BTreeMap;

use cortex_core::sampling::SamplingParams;
use neuron_engine::sampler::{SampleError, SampleRow, Sampled, TokenMask, sample};
use proptest::prelude::*;

use crate::fixtures::{self, ids};

fn params(change: impl FnOnce(&mut SamplingParams)) -> SamplingParams {
    let mut params = SamplingParams { temperature: 1.0, seed: 42, ..SamplingParams::greedy() };
    change(&mut params);
    params
}

fn row(params: &SamplingParams) -> SampleRow<'_> {
    SampleRow { params, position: 0, prompt: &[], answer: &[], logprobs: None, allowed: None }
}

fn draw(logits: &[f32], row: &SampleRow<'_>) -> Result<Sampled, SampleError> {
    sample(&mut logits.to_vec(), row)
}

/// Every token that can be drawn, found by drawing often.
fn support(logits: &[f32], row: &SampleRow<'_>) -> Vec<u32> {
    let drawn: std::collections::BTreeSet<_> =
        (0..2000).map(|position| draw(logits, &SampleRow { position, ..*row }).unwrap().token).collect();
    drawn.into_iter().collect()
}

/// ln of each number: logits whose probabilities at temperature 1 are these, normalised.
fn logits_of(weights: &[f32]) -> Vec<f32> {
    weights.iter().map(|w| w.ln()).collect()
}

#[test]
fn greedy_takes_the_best_and_the_lowest_id_on_ties() {
    let none = f32::NEG_INFINITY;
    let cases: [(&[f32], Result<u32, SampleError>); 8] = [
        (&[1.0, 3.0, 2.0], Ok(1)),
        (&[3.0, 3.0, 2.0], Ok(0)),
        (&[-0.0, 0.0], Ok(0)),
        (&[none, -1e30], Ok(1)),
        (&[none, none], Err(SampleError::NoCandidate)),
        (&[], Err(SampleError::NoCandidate)),
        (&[0.0, f32::NAN, 1.0], Err(SampleError::NotFinite { token: 1 })),
        (&[0.0, 1.0, f32::INFINITY], Err(SampleError::NotFinite { token: 2 })),
    ];
    for (logits, expected) in cases {
        assert_eq!(draw(logits, &row(&SamplingParams::greedy())).map(|s| s.token), expected, "{logits:?}");
    }
}

#[test]
fn filters_keep_exactly_these_tokens() {
    // Probabilities 0.05, 0.4, 0.1, 0.2, 0.2, 0.05.
    let logits = logits_of(&[1.0, 8.0, 2.0, 4.0, 4.0, 1.0]);
    let cases: [(fn(&mut SamplingParams), &[u32]); 15] = [
        (|_| {}, &[0, 1, 2, 3, 4, 5]),
        (|p| p.top_k = 1, &[1]),
        (|p| p.top_k = 2, &[1, 3]),
        (|p| p.top_k = 3, &[1, 3, 4]),
        (|p| p.top_k = 100, &[0, 1, 2, 3, 4, 5]),
        (|p| p.top_p = 0.0, &[1]),
        (|p| p.top_p = 0.39, &[1]),
        (|p| p.top_p = 0.41, &[1, 3]),
        (|p| p.top_p = 0.75, &[1, 3, 4]),
        (|p| p.top_p = 0.93, &[0, 1, 2, 3, 4]),
        (|p| p.min_p = 0.49, &[1, 3, 4]),
        (|p| p.min_p = 1.0, &[1]),
        (|p| (p.top_k, p.top_p) = (3, 0.5), &[1]),
        (|p| (p.top_k, p.top_p) = (3, 0.51), &[1, 3]),
        (|p| (p.min_p, p.top_p) = (0.2, 0.9), &[1, 2, 3, 4]),
    ];
    for (change, expected) in cases {
        let params = params(change);
        assert_eq!(support(&logits, &row(&params)), expected, "{params:?}");
    }
    // Temperature comes before the filters: at 0.5 the weights are squared, so 0.64 of the mass is on one token.
    let params = params(|p| (p.temperature, p.top_p) = (0.5, 0.6));
    assert_eq!(support(&logits, &row(&params)), [1]);
}

#[test]
fn penalties_and_bias_move_logits_by_these_rules() {
    // Greedy shows the order of the moved logits; logprobs stay the model's own.
    let greedy = |change: fn(&mut SamplingParams)| {
        let mut params = SamplingParams::greedy();
        change(&mut params);
        params
    };
    let cases: [(fn(&mut SamplingParams), &[u32], &[u32], &[f32], u32); 10] = [
        (|p| p.repetition_penalty = 2.0, &[0], &[], &[3.0, 2.0], 1),
        (|p| p.repetition_penalty = 1.4, &[0], &[], &[3.0, 2.0], 0),
        (|p| p.repetition_penalty = 2.0, &[0, 0, 0], &[0], &[5.0, 2.0], 0),
        (|p| p.repetition_penalty = 2.0, &[], &[1], &[-3.0, -2.0], 0),
        (|p| p.presence_penalty = 1.5, &[], &[0, 0, 0], &[3.0, 1.0], 0),
        (|p| p.presence_penalty = 1.5, &[0], &[], &[2.0, 1.0], 0),
        (|p| p.frequency_penalty = 0.5, &[0], &[0, 1, 0, 0], &[3.0, 1.0], 0),
        (|p| p.frequency_penalty = 1.1, &[0], &[0, 1, 0, 0], &[3.0, 1.0], 1),
        (|p| p.logit_bias = vec![(1, 2.5), (9, 100.0)], &[], &[], &[3.0, 1.0], 1),
        (|p| p.repetition_penalty = 2.0, &[77], &[u32::MAX], &[3.0, 1.0], 0),
    ];
    for (change, prompt, answer, logits, expected) in cases {
        let params = greedy(change);
        let row = SampleRow { prompt, answer, logprobs: Some(2), ..row(&params) };
        let sampled = draw(logits, &row).unwrap();
        assert_eq!(sampled.token, expected, "{params:?}");
        let plain = draw(logits, &SampleRow { logprobs: Some(2), params: &SamplingParams::greedy(), ..row }).unwrap();
        assert_eq!(sampled.logprob.unwrap().top, plain.logprob.unwrap().top);
    }
}

#[test]
fn a_bias_can_force_or_ban_a_token() {
    let force = params(|p| p.logit_bias = vec![(2, 100.0)]);
    let ban = params(|p| p.logit_bias = vec![(1, f32::NEG_INFINITY)]);
    let infinite = params(|p| p.logit_bias = vec![(0, f32::INFINITY)]);
    assert_eq!(support(&[0.0, 1.0, 2.0], &row(&force)), [2]);
    assert_eq!(support(&[0.0, 1.0, 2.0], &row(&ban)), [0, 2]);
    assert_eq!(support(&[0.0, 1.0, 2.0], &row(&infinite)), [0]);
}

#[test]
fn only_allowed_tokens_are_drawn() {
    let logits = vec![0.0; 130];
    let mut allowed = TokenMask::none(130);
    for id in [3, 64, 129, 5000] {
        allowed.allow(id);
    }
    for change in [|_: &mut SamplingParams| {}, |p: &mut SamplingParams| p.top_k = 50, |p: &mut SamplingParams| p.temperature = 0.0] {
        let params = params(change);
        let found = support(&logits, &SampleRow { allowed: Some(&allowed), ..row(&params) });
        assert_eq!(found, if params.temperature == 0.0 { vec![3] } else { vec![3, 64, 129] });
    }
    let nothing = TokenMask::none(130);
    let params = params(|_| {});
    assert_eq!(draw(&logits, &SampleRow { allowed: Some(&nothing), ..row(&params) }), Err(SampleError::NoCandidate));
}

#[test]
fn logprobs_are_the_models_own_best_first() {
    let logits = [1.0f32, 3.0, f32::NEG_INFINITY, 3.0, 2.0];
    let params = params(|p| (p.temperature, p.top_k, p.logit_bias) = (0.1, 1, vec![(0, 50.0)]));
    let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    let ln_p = |x: f64| (x - total.ln()) as f32;
    for (asked, order) in [(0, &[][..]), (1, &[1][..]), (3, &[1, 3, 4][..]), (20, &[1, 3, 4, 0][..])] {
        let sampled = draw(&logits, &SampleRow { logprobs: Some(asked), ..row(&params) }).unwrap();
        let logprobs = sampled.logprob.unwrap();
        assert_eq!(sampled.token, 0);
        assert!((logprobs.chosen - ln_p(1.0)).abs() < 1e-6);
        assert_eq!(logprobs.top.iter().map(|t| t.0).collect::<Vec<_>>(), order);
        assert!(logprobs.top.iter().all(|&(id, p)| (p - ln_p(f64::from(logits[id as usize]))).abs() < 1e-6));
    }
    assert_eq!(draw(&logits, &row(&params)).unwrap().logprob, None);
}

/// The distribution by definition, slowly: sort everything, in f64.
fn exact(logits: &[f32], params: &SamplingParams) -> BTreeMap<u32, f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |x: f32| (f64::from(x - max) / f64::from(params.temperature)).exp();
    let mut ranked: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|&x| weight(x))).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    ranked.retain(|c| c.1 >= f64::from(params.min_p));
    if params.top_k > 0 {
        ranked.truncate(params.top_k as usize);
    }
    let goal = f64::from(params.top_p) * ranked.iter().map(|c| c.1).sum::<f64>();
    let mut sum = 0.0;
    let nucleus = ranked.iter().take_while(|c| {
        let before = sum;
        sum += c.1;
        before < goal
    });
    let nucleus = nucleus.count();
    ranked.truncate(nucleus.max(1));
    let total: f64 = ranked.iter().map(|c| c.1).sum();
    ranked.into_iter().map(|(id, weight)| (id, weight / total)).collect()
}

/// A repeatable, uneven row.
fn uneven(vocab: u32, spread: f32) -> Vec<f32> {
    (0..vocab).map(|id| ((id.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 - 0.5) * spread).collect()
}

#[test]
fn draws_follow_the_exact_distribution() {
    const DRAWS: u64 = 40_000;
    let cases: [(u32, f32, fn(&mut SamplingParams)); 8] = [
        (8, 4.0, |_| {}),
        (50, 8.0, |_| {}),
        (50, 8.0, |p| p.temperature = 0.7),
        (50, 8.0, |p| p.temperature = 1.8),
        (50, 8.0, |p| p.top_k = 7),
        (50, 8.0, |p| p.top_p = 0.8),
        (50, 8.0, |p| p.min_p = 0.1),
        (400, 6.0, |p| (p.temperature, p.top_k, p.top_p, p.min_p) = (1.3, 60, 0.9, 0.02)),
    ];
    for (vocab, spread, change) in cases {
        let logits = uneven(vocab, spread);
        // Half of the draws walk along positions of one seed, half take one draw from each of many seeds.
        for by_seed in [false, true] {
            let mut counts = BTreeMap::new();
            let mut params = params(change);
            for i in 0..DRAWS {
                let position = if by_seed { 3 } else { i };
                params.seed = if by_seed { i } else { 7 };
                let token = draw(&logits, &SampleRow { position, ..row(&params) }).unwrap().token;
                *counts.entry(token).or_insert(0u64) += 1;
            }
            let expected = exact(&logits, &params);
            assert!(counts.keys().all(|id| expected.contains_key(id)), "{params:?}: a token outside the filters");
            let (chi_square, bins) = chi_square(&counts, &expected, DRAWS as f64);
            // Wilson and Hilferty's normal approximation, at 4.5 standard deviations: 3 in a million by chance, and seeds are fixed.
            let df = bins - 1.0;
            let limit = df * (1.0 - 2.0 / (9.0 * df) + 4.5 * (2.0 / (9.0 * df)).sqrt()).powi(3);
            assert!(chi_square < limit, "{params:?}: chi-square {chi_square} of {bins} bins, limit {limit}");
        }
    }
}

/// Tokens expected fewer than 10 times share a bin.
fn chi_square(counts: &BTreeMap<u32, u64>, expected: &BTreeMap<u32, f64>, draws: f64) -> (f64, f64) {
    let (mut sum, mut bins, mut rare) = (0.0, 0.0, (0.0, 0.0));
    for (id, p) in expected {
        let (seen, hoped) = (counts.get(id).copied().unwrap_or(0) as f64, p * draws);
        if hoped < 10.0 {
            rare = (rare.0 + seen, rare.1 + hoped);
        } else {
            sum += (seen - hoped).powi(2) / hoped;
            bins += 1.0;
        }
    }
    if rare.1 > 10.0 {
        sum += (rare.0 - rare.1).powi(2) / rare.1;
        bins += 1.0;
    }
    (sum, bins)
}

#[test]
fn a_seed_and_a_position_fix_the_draw() {
    let logits = uneven(5_000, 2.0);
    let params = params(|p| p.top_p = 0.95);
    let at = |position| draw(&logits, &SampleRow { position, ..row(&params) }).unwrap().token;
    let forward: Vec<u32> = (0..64).map(at).collect();
    let backward: Vec<u32> = (0..64).rev().map(at).collect();
    assert!(forward.iter().eq(backward.iter().rev()), "the order of the draws matters");
    let asked = draw(&logits, &SampleRow { position: 9, logprobs: Some(5), ..row(&params) }).unwrap();
    assert_eq!(asked.token, forward[9], "asking for logprobs changes the draw");
    let distinct: std::collections::BTreeSet<_> = forward.iter().collect();
    assert!(distinct.len() > 50, "positions repeat each other: {forward:?}");
    let other = SamplingParams { seed: 43, ..params.clone() };
    let differs = (0..64).filter(|&position| draw(&logits, &SampleRow { position, ..row(&other) }).unwrap().token != at(position));
    assert!(differs.count() > 50, "seeds repeat each other");
}

#[test]
fn draws_stay_as_they_were() {
    // Saved seeds must give the same text in the next version.
    let logits = uneven(1_000, 6.0);
    let params = params(|p| (p.temperature, p.top_k, p.top_p) = (0.8, 100, 0.95));
    let drawn: Vec<u32> = (0..8).map(|position| draw(&logits, &SampleRow { position, ..row(&params) }).unwrap().token).collect();
    assert_eq!(drawn, PINNED);
}

const PINNED: [u32; 8] = [351, 961, 495, 76, 686, 76, 199, 749];

proptest! {
    #[test]
    fn a_large_row_keeps_the_same_set_as_a_full_sort(
        spread in 0.1f32..12.0, top_k in 0u32..400, top_p in 0.01f32..1.0, min_p in 0.0f32..0.3, seed: u64,
    ) {
        let logits = uneven(3_000, spread);
        let params = params(|p| (p.top_k, p.top_p, p.min_p, p.seed) = (top_k, top_p, min_p, seed));
        let kept = exact(&logits, &params);
        for position in 0..20 {
            let token = draw(&logits, &SampleRow { position, ..row(&params) }).unwrap().token;
            prop_assert!(kept.contains_key(&token));
        }
    }

    #[test]
    fn no_row_and_no_parameters_panic(
        logits in prop::collection::vec(prop::num::f32::ANY, 0..40), temperature in prop::num::f32::ANY, top_p in prop::num::f32::ANY,
        min_p in prop::num::f32::ANY, top_k: u32, penalty in prop::num::f32::ANY, bias in prop::num::f32::ANY,
    ) {
        let params = params(|p| {
            (p.temperature, p.top_p, p.min_p, p.top_k, p.repetition_penalty) = (temperature, top_p, min_p, top_k, penalty);
            p.logit_bias = vec![(1, bias)];
        });
        let len = logits.len();
        if let Ok(sampled) = draw(&logits, &SampleRow { prompt: &[0, 2], answer: &[1], logprobs: Some(3), ..row(&params) }) {
            prop_assert!((sampled.token as usize) < len);
        }
    }
}

#[test]
fn greedy_tokens_and_best_fives_are_the_references() {
    let mut compared = 0;
    for set in fixtures::sets() {
        for name in set.checkpoints().into_iter().filter(|name| !name.contains("bert")) {
            for (case, json) in set.cases(&name) {
                let tensors = set.tensors(&format!("{name}/{case}"));
                let greedy = ids(&json["greedy"]);
                let logits = tensors["logits"].to_vec2::<f32>().unwrap();
                let last_step = tensors["last_step_logits"].to_vec1::<f32>().unwrap();
                for (logits, step) in [(logits.last().unwrap(), 0), (&last_step, greedy.len() - 1)] {
                    let params = SamplingParams::greedy();
                    let sampled = draw(logits, &SampleRow { logprobs: Some(5), ..row(&params) }).unwrap();
                    assert_eq!(sampled.token, greedy[step], "{name}, {case}, step {step}");
                    let top: Vec<u32> = sampled.logprob.unwrap().top.iter().map(|t| t.0).collect();
                    // Not every fixture keeps the five best of its steps.
                    if let Some(best) = json["steps"][step].get("top5_ids") {
                        assert_eq!(top, ids(best), "{name}, {case}, step {step}");
                        compared += 1;
                    }
                }
            }
        }
    }
    assert!(compared > 0, "no five best were compared");
}
