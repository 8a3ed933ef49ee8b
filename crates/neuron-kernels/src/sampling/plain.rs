//! The rule in its plain form: sort, cut, add up. The kernels give the same tokens; so does the engine's sampler, except where its
//! sums in floating point and these whole numbers fall on two sides of a border.

use super::outcome::{LOGPROB_WORDS, NO_CANDIDATE, NONE};
use super::weight::weight;
use super::{ALTERNATIVES_MAX, Row};

/// What a weight of 1 counts.
const ONE: f32 = (1u64 << 44) as f32;

/// The outcome of a step, as words.
pub(super) fn draw(logits: &[f32], rows: &[Row<'_>], vocabulary: usize) -> Vec<u32> {
    let (mut tokens, mut faults, mut reports) = (Vec::new(), Vec::new(), Vec::new());
    for (row, logits) in rows.iter().zip(logits.chunks_exact(vocabulary)) {
        let drawn = draw_row(logits, row);
        tokens.push(drawn.unwrap_or(0));
        faults.push(drawn.err().unwrap_or(NONE));
        if let Some(count) = row.logprobs {
            reports.extend(logprobs(logits, drawn.unwrap_or(0), count));
        }
    }
    [tokens, faults, reports].concat()
}

/// A token, or the word that says what is wrong.
fn draw_row(raw: &[f32], row: &Row<'_>) -> Result<u32, u32> {
    if let Some(token) = raw.iter().position(|x| x.is_nan() || *x == f32::INFINITY) {
        return Err(token as u32);
    }
    let mut logits = raw.to_vec();
    edit(&mut logits, row);
    if let Some(allowed) = row.allowed {
        let banned = |&(id, _): &(usize, &mut f32)| allowed.get(id / 64).is_none_or(|word| word >> (id % 64) & 1 == 0);
        logits.iter_mut().enumerate().filter(banned).for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
    }
    let best = best(&logits).ok_or(NO_CANDIDATE)?;
    if row.temperature <= 0.0 {
        return Ok(best as u32);
    }
    let highest = logits[best];
    let candidates = logits.iter().zip(0..).map(|(&logit, id)| Candidate { id, weight: weight(logit, highest, row.temperature) });
    let mut candidates: Vec<_> = candidates.filter(|c| c.weight >= row.min_weight() && c.count() > 0).collect();
    candidates.sort_by(|a, b| b.weight.total_cmp(&a.weight));
    candidates.truncate(row.top_k(logits.len()).unwrap_or(usize::MAX));
    if let Some(top_p) = row.top_p() {
        let goal = share(top_p, total(&candidates)).max(1);
        candidates.truncate(place(&candidates, goal) + 1);
    }
    candidates.sort_by_key(|c| c.id);
    let goal = ((u128::from(row.uniform) * u128::from(total(&candidates))) >> 64) as u64 + 1;
    Ok(candidates[place(&candidates, goal)].id)
}

#[derive(Clone, Copy)]
struct Candidate {
    id: u32,
    weight: f32,
}

impl Candidate {
    fn count(self) -> u64 {
        (self.weight * ONE).round_ties_even() as u64
    }
}

fn total(candidates: &[Candidate]) -> u64 {
    candidates.iter().map(|c| c.count()).sum()
}

/// Of the first at which the running count reaches `goal`.
fn place(candidates: &[Candidate], goal: u64) -> usize {
    let mut sum = 0;
    let reaches = |c: &Candidate| {
        sum += c.count();
        sum >= goal
    };
    candidates.iter().position(reaches).unwrap_or(candidates.len() - 1)
}

/// The least whole number that is at least `share` / 2^64 of `total`.
fn share(share: u64, total: u64) -> u64 {
    (u128::from(share) * u128::from(total)).div_ceil(1 << 64) as u64
}

fn edit(logits: &mut [f32], row: &Row<'_>) {
    for edits in row.edits.chunk_by(|a, b| a.token == b.token) {
        let Some(logit) = logits.get_mut(edits[0].token as usize) else { continue };
        let mut x = *logit;
        if edits[0].seen > 0 && row.repetition_penalty != 1.0 {
            x = if x > 0.0 { x / row.repetition_penalty } else { x * row.repetition_penalty };
        }
        if edits[0].seen > 1 {
            x -= row.frequency_penalty * (edits[0].seen - 1) as f32 + row.presence_penalty;
        }
        for edit in edits {
            x += edit.bias;
        }
        *logit = if x == f32::INFINITY {
            f32::MAX
        } else if x.is_nan() {
            f32::NEG_INFINITY
        } else {
            x
        };
    }
}

/// Where the highest logit is, the first of several; none is higher than minus infinity.
fn best(logits: &[f32]) -> Option<usize> {
    let mut best = None;
    let mut highest = f32::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > highest {
            (best, highest) = (Some(id), logit);
        }
    }
    best
}

/// The words of a row's log-probabilities.
fn logprobs(raw: &[f32], token: u32, count: u8) -> Vec<u32> {
    let highest = raw.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = raw.iter().map(|&x| f64::from(weight(x, highest, 1.0))).sum();
    let log_sum_exp = f64::from(highest) + sum.ln();
    let ln_p = |id: u32| ((f64::from(raw[id as usize]) - log_sum_exp) as f32).to_bits();
    let mut ids: Vec<u32> = (0..raw.len() as u32).filter(|&id| raw[id as usize] > f32::NEG_INFINITY).collect();
    // Both zeros are one.
    let order = |id: u32| raw[id as usize] + 0.0;
    ids.sort_by(|&a, &b| order(b).total_cmp(&order(a)));
    ids.truncate(count.into());
    let mut words = vec![ln_p(token)];
    words.extend(&ids);
    words.resize(1 + usize::from(ALTERNATIVES_MAX), NONE);
    words.extend(ids.iter().map(|&id| ln_p(id)));
    words.resize(LOGPROB_WORDS, 0);
    words
}
