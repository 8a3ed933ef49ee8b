//! From one row of logits to one token.
//!
//! The order, which is also vLLM's: penalties (repetition over prompt and answer; frequency and presence over the answer), logit
//! bias, allowed tokens, temperature, then the filters top-k, min-p and top-p, then the draw. Top-k and min-p both keep the head
//! of the same ranking, so either may come first; top-p comes last and counts shares of what they left. Ties rank by lower id.
//!
//! Log-probabilities are the model's own: taken from the logits as they came, before any of the above.
//!
//! The draw is a function of `(seed, position)` and this row alone. Whatever else is in the batch, however often the sequence was
//! preempted, the same token comes out.

use std::cmp::Ordering;

use cortex_core::sampling::SamplingParams;
use neuron_kernels::sampling::weight;

use crate::split_mix;

/// What belongs to the row besides its logits.
#[derive(Clone, Copy, Debug)]
pub struct SampleRow<'a> {
    /// How to choose.
    pub params: &'a SamplingParams,
    /// Index in its sequence of the token to be drawn.
    pub position: u64,
    /// Tokens of the prompt, for the repetition penalty.
    pub prompt: &'a [u32],
    /// Tokens of the answer so far, for all penalties.
    pub answer: &'a [u32],
    /// Report log-probabilities, with this many alternatives.
    pub logprobs: Option<u8>,
    /// Only these tokens may be drawn (a grammar); absent: all.
    pub allowed: Option<&'a TokenMask>,
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The id.
    pub token: u32,
    /// Present when asked for.
    pub logprob: Option<Logprobs>,
}

/// Natural-log probabilities under the model's own distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Of the token that was drawn.
    pub chosen: f32,
    /// The most probable tokens, best first; fewer than asked when the rest cannot occur.
    pub top: Vec<(u32, f32)>,
}

/// Why no token could be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// The forward pass went wrong.
    #[error("the model computed a logit that is not finite, at token {token}; the checkpoint or the device may be damaged")]
    NotFinite {
        /// The first such token.
        token: u32,
    },
    /// Every token has probability 0, or none is allowed.
    #[error("no token can follow: the logit bias or the grammar leaves none")]
    NoCandidate,
}

/// A set of token ids, one bit each, 64 to a word: the form in which a device takes it. Ids past its size are not in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u64>,
}

impl TokenMask {
    /// The empty set over ids below `vocab_size`.
    pub fn none(vocab_size: usize) -> Self {
        Self { words: vec![0; vocab_size.div_ceil(64)] }
    }

    /// One id, and nothing past it.
    pub fn only(token: u32) -> Self {
        let mut mask = Self::none(token as usize + 1);
        mask.allow(token);
        mask
    }

    /// The set that `halves` spell, 32 ids to a word, cut or filled up with absent ids to `vocab_size`.
    pub fn from_halves(halves: &[u32], vocab_size: usize) -> Self {
        let half = |at: usize| u64::from(halves.get(at).copied().unwrap_or(0));
        let mut words: Vec<u64> = (0..vocab_size.div_ceil(64)).map(|at| half(2 * at) | half(2 * at + 1) << 32).collect();
        if let (Some(last), rest @ 1..) = (words.last_mut(), vocab_size % 64) {
            *last &= (1 << rest) - 1;
        }
        Self { words }
    }

    /// Bit `i % 64` of word `i / 64` is set for each id `i` in the set.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Adds an id; one past the size is ignored.
    pub fn allow(&mut self, token: u32) {
        if let Some(word) = self.words.get_mut(token as usize / 64) {
            *word |= 1 << (token % 64);
        }
    }

    /// Whether the id is in the set.
    pub fn allows(&self, token: u32) -> bool {
        self.words.get(token as usize / 64).is_some_and(|word| word >> (token % 64) & 1 == 1)
    }

    /// Adds an id and says whether it was absent before; false past the size.
    fn insert(&mut self, token: u32) -> bool {
        let fresh = (token as usize) / 64 < self.words.len() && !self.allows(token);
        self.allow(token);
        fresh
    }
}

/// Draws the next token. `logits` (one row, `[vocab]`) is used as scratch and holds nothing meaningful afterwards.
pub fn sample(logits: &mut [f32], row: &SampleRow<'_>) -> Result<Sampled, SampleError> {
    check_finite(logits)?;
    let model = row.logprobs.map(|top| ModelView::new(logits, top));
    apply_penalties(logits, row);
    apply_bias(logits, &row.params.logit_bias);
    if let Some(allowed) = row.allowed {
        apply_mask(logits, allowed);
    }
    let token = choose(logits, row)?;
    Ok(Sampled { token, logprob: model.map(|model| model.logprobs(token)) })
}

fn choose(logits: &mut [f32], row: &SampleRow<'_>) -> Result<u32, SampleError> {
    let best = argmax(logits).ok_or(SampleError::NoCandidate)?;
    let params = row.params;
    if params.temperature <= 0.0 {
        return Ok(best);
    }
    weigh(logits, logits[best as usize], params.temperature);
    let target = uniform(params.seed, row.position);
    Ok(match Filters::of(params, logits.len()) {
        None => draw(by_id(logits), target),
        Some(filters) => draw(filters.keep(logits).into_iter().map(|c| (c.token, c.weight)), target),
    })
}

/// The row as the model computed it, kept for log-probabilities.
struct ModelView {
    logits: Vec<f32>,
    log_sum_exp: f64,
    top: Vec<(u32, f32)>,
}

impl ModelView {
    fn new(logits: &[f32], top: u8) -> Self {
        let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = logits.iter().map(|&x| (f64::from(x) - max).exp()).sum();
        Self { logits: logits.to_vec(), log_sum_exp: max + sum.ln(), top: most_probable(logits, usize::from(top)) }
    }

    fn logprobs(self, token: u32) -> Logprobs {
        let ln_p = |logit: f32| (f64::from(logit) - self.log_sum_exp) as f32;
        Logprobs { chosen: ln_p(self.logits[token as usize]), top: self.top.iter().map(|&(id, logit)| (id, ln_p(logit))).collect() }
    }
}

/// The `count` highest logits, best first.
fn most_probable(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    for (id, &logit) in ids(logits).zip(logits) {
        let full = top.len() == count;
        if logit == f32::NEG_INFINITY || count == 0 || (full && logit <= top[count - 1].1) {
            continue;
        }
        let place = top.partition_point(|&(_, other)| other >= logit);
        top.insert(place, (id, logit));
        top.truncate(count);
    }
    top
}

fn check_finite(logits: &[f32]) -> Result<(), SampleError> {
    match logits.iter().position(|x| x.is_nan() || *x == f32::INFINITY) {
        Some(token) => Err(SampleError::NotFinite { token: token as u32 }),
        None => Ok(()),
    }
}

fn apply_penalties(logits: &mut [f32], row: &SampleRow<'_>) {
    let params = row.params;
    if params.repetition_penalty != 1.0 {
        let mut seen = TokenMask::none(logits.len());
        for &token in row.prompt.iter().chain(row.answer) {
            if let (true, Some(logit)) = (seen.insert(token), logits.get_mut(token as usize)) {
                *logit = if *logit > 0.0 { *logit / params.repetition_penalty } else { *logit * params.repetition_penalty };
            }
        }
    }
    if params.frequency_penalty != 0.0 || params.presence_penalty != 0.0 {
        let mut answer = row.answer.to_vec();
        answer.sort_unstable();
        for run in answer.chunk_by(|a, b| a == b) {
            if let Some(logit) = logits.get_mut(run[0] as usize) {
                *logit -= params.frequency_penalty * run.len() as f32 + params.presence_penalty;
            }
        }
    }
}

fn apply_bias(logits: &mut [f32], bias: &[(u32, f32)]) {
    for &(token, bias) in bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
}

fn apply_mask(logits: &mut [f32], allowed: &TokenMask) {
    for (token, logit) in logits.iter_mut().enumerate() {
        if !allowed.allows(token as u32) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// The highest logit, the lowest id on ties; `None` when nothing is above minus infinity.
fn argmax(logits: &[f32]) -> Option<u32> {
    let mut best = None;
    let mut highest = f32::NEG_INFINITY;
    for (id, &logit) in ids(logits).zip(logits) {
        if logit > highest {
            (best, highest) = (Some(id), logit);
        }
    }
    best
}

/// Turns logits into unnormalised probabilities at this temperature; the best has weight 1.
fn weigh(logits: &mut [f32], highest: f32, temperature: f32) {
    for logit in logits {
        *logit = weight(*logit, highest, temperature);
    }
}

/// The filters that a request turned on.
struct Filters {
    top_k: usize,
    min_p: f32,
    top_p: f64,
}

#[derive(Clone, Copy)]
struct Candidate {
    token: u32,
    weight: f32,
}

impl Filters {
    /// `None` when every token stays.
    fn of(params: &SamplingParams, vocab_size: usize) -> Option<Self> {
        let top_k = if params.top_k == 0 { vocab_size } else { (params.top_k as usize).min(vocab_size) };
        let on = top_k < vocab_size || params.min_p > 0.0 || params.top_p < 1.0;
        on.then_some(Self { top_k, min_p: params.min_p, top_p: f64::from(params.top_p).max(0.0) })
    }

    /// The tokens that stay, in id order; never none.
    fn keep(&self, weights: &[f32]) -> Vec<Candidate> {
        let min_weight = self.min_p.min(1.0);
        let stays = |c: &Candidate| c.weight > 0.0 && c.weight >= min_weight;
        let candidates = by_id(weights).map(|(token, weight)| Candidate { token, weight }).filter(stays);
        let mut kept = if self.top_k < weights.len() { head(candidates, self.top_k) } else { candidates.collect() };
        if self.top_p < 1.0 {
            cut_to_nucleus(&mut kept, self.top_p);
        }
        kept.sort_unstable_by_key(|c| c.token);
        kept
    }
}

/// The `count` best of candidates that come in id order, in any order. A vocabulary is large and `count` is small, so almost all
/// are turned away by one comparison.
fn head(candidates: impl Iterator<Item = Candidate>, count: usize) -> Vec<Candidate> {
    let room = (2 * count).max(64);
    let mut kept: Vec<Candidate> = Vec::new();
    let mut floor = 0.0;
    for candidate in candidates {
        // An equal weight ranks below those kept, whose ids are lower.
        if candidate.weight > floor {
            kept.push(candidate);
            if kept.len() == room {
                kept.select_nth_unstable_by(count - 1, by_rank);
                kept.truncate(count);
                floor = kept[count - 1].weight;
            }
        }
    }
    if count < kept.len() {
        kept.select_nth_unstable_by(count - 1, by_rank);
        kept.truncate(count);
    }
    kept
}

/// Keeps the smallest set whose share reaches `top_p`, at least 1 candidate, best first. Ranks only as many as it needs, in
/// growing chunks.
fn cut_to_nucleus(candidates: &mut Vec<Candidate>, top_p: f64) {
    let total: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
    let goal = top_p * total;
    // All below this together weigh less than what the nucleus leaves out.
    let tail = (total - goal) / candidates.len() as f64;
    candidates.retain(|c| f64::from(c.weight) >= tail);
    let (mut sum, mut ranked, mut chunk) = (0.0, 0, 64);
    while ranked < candidates.len() {
        let rest = &mut candidates[ranked..];
        let len = chunk.min(rest.len());
        if len < rest.len() {
            rest.select_nth_unstable_by(len - 1, by_rank);
        }
        rest[..len].sort_unstable_by(by_rank);
        let reaches = |c: &Candidate| {
            sum += f64::from(c.weight);
            sum >= goal
        };
        if let Some(place) = rest[..len].iter().position(reaches) {
            candidates.truncate(ranked + place + 1);
            return;
        }
        ranked += len;
        chunk *= 4;
    }
}

/// Best first; total, because weights are never NaN and ids differ.
fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.weight.total_cmp(&a.weight).then(a.token.cmp(&b.token))
}

/// Inverse of the cumulative distribution, in id order, at `target` in [0, 1). Weights need not be normalised; at least one is
/// above 0.
fn draw(weights: impl Iterator<Item = (u32, f32)> + Clone, target: f64) -> u32 {
    let goal = target * weights.clone().map(|(_, weight)| f64::from(weight)).sum::<f64>();
    let (mut sum, mut last) = (0.0, 0);
    for (token, weight) in weights {
        if weight > 0.0 {
            sum += f64::from(weight);
            last = token;
            if sum > goal {
                break;
            }
        }
    }
    last
}

/// A number in [0, 1) with 53 random bits.
fn uniform(seed: u64, position: u64) -> f64 {
    (split_mix::bits(seed, position) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

fn ids(row: &[f32]) -> std::ops::Range<u32> {
    0..row.len() as u32
}

fn by_id(row: &[f32]) -> impl Iterator<Item = (u32, f32)> + Clone + '_ {
    ids(row).zip(row.iter().copied())
}
