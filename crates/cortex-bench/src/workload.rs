//! What is asked, when, decided by a seed: the same file gives the same requests in the same order everywhere.

use std::num::NonZeroUsize;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A workload as its file describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Decides prompts and arrivals.
    pub seed: u64,
    /// How many requests in all.
    pub requests: NonZeroUsize,
    /// Longest answer in tokens.
    pub max_tokens: u32,
    /// Length of a prompt.
    pub prompt_words: Span,
    /// Words that every prompt begins with; a prefix cache has them after the first.
    #[serde(default)]
    pub shared_words: usize,
    /// When requests come.
    pub arrival: Arrival,
    /// What counts as good.
    #[serde(default)]
    pub goal: Goal,
}

/// From `min` to `max`, each as likely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// The shortest.
    pub min: usize,
    /// The longest.
    pub max: usize,
}

/// When requests come.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arrival {
    /// Requests open at once; the next is sent when one ends.
    pub at_once: NonZeroUsize,
    /// Arrivals per second, with random gaps (Poisson); absent: as fast as `at_once` lets.
    #[serde(default)]
    pub per_second: Option<f64>,
}

/// What counts as a good answer; absent bounds are always met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Goal {
    /// Time to the first token.
    pub ttft_ms: Option<f64>,
    /// Mean time between tokens.
    pub itl_ms: Option<f64>,
}

/// One request, ready to be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// When it comes, from the start.
    pub at: Duration,
    /// The body of `POST /v1/chat/completions`.
    pub body: Value,
}

impl Workload {
    /// Reads the text of a workload file.
    ///
    /// # Errors
    /// What is wrong in it.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let workload: Self = toml::from_str(text).context("the workload cannot be understood")?;
        let Span { min, max } = workload.prompt_words;
        ensure!(0 < min && min <= max, "prompt_words needs 0 < min <= max");
        ensure!(workload.arrival.per_second.is_none_or(|rate| rate > 0.0 && rate.is_finite()), "per_second must be positive");
        Ok(workload)
    }

    /// All requests, in the order in which they come.
    pub fn plan(&self, model: &str) -> Vec<Planned> {
        let mut random = Random(self.seed);
        let shared = words(&mut random, self.shared_words);
        let mut at = Duration::ZERO;
        let mut planned = Vec::with_capacity(self.requests.get());
        for _ in 0..self.requests.get() {
            if let Some(rate) = self.arrival.per_second {
                at += Duration::from_secs_f64(-random.unit().ln() / rate);
            }
            let Span { min, max } = self.prompt_words;
            let own = min + (random.next() % (max - min + 1) as u64) as usize;
            let prompt = [shared.clone(), words(&mut random, own)].concat().join(" ");
            let body = json!({
                "model": model,
                "messages": [{ "role": "user", "content": prompt }],
                "max_tokens": self.max_tokens,
                "stream": true,
                "stream_options": { "include_usage": true },
            });
            planned.push(Planned { at, body });
        }
        planned
    }
}

fn words(random: &mut Random, count: usize) -> Vec<&'static str> {
    const WORDS: [&str; 16] = [
        "river", "seven", "stone", "light", "under", "green", "count", "table", "winter", "paper", "north", "bread", "quiet", "wheel",
        "salt", "open",
    ];
    (0..count).map(|_| WORDS[(random.next() % WORDS.len() as u64) as usize]).collect()
}

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Above 0, up to 1.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "seed = 1\nrequests = 50\nmax_tokens = 8\nprompt_words = { min = 2, max = 4 }\nshared_words = 3\n[arrival]\nat_once = 2\nper_second = 10.0\n";

    #[test]
    fn a_seed_gives_the_same_requests_and_another_one_gives_others() {
        let workload = Workload::parse(TEXT).unwrap();
        let plan = workload.plan("m");
        assert_eq!(plan, workload.plan("m"));
        assert_ne!(plan, Workload { seed: 2, ..workload.clone() }.plan("m"));
        let prompts: Vec<&str> = plan.iter().map(|planned| planned.body["messages"][0]["content"].as_str().unwrap()).collect();
        let first: Vec<&str> = prompts[0].split(' ').take(3).collect();
        for prompt in &prompts {
            assert!(prompt.starts_with(&first.join(" ")));
            assert!((5..=7).contains(&prompt.split(' ').count()), "{prompt}");
        }
    }

    #[test]
    fn arrivals_come_at_the_rate_that_was_asked_for() {
        let workload = Workload { requests: 5_000.try_into().unwrap(), ..Workload::parse(TEXT).unwrap() };
        let last = workload.plan("m").last().unwrap().at.as_secs_f64();
        assert!((last - 500.0).abs() < 25.0, "{last}");
    }

    #[test]
    fn mistakes_are_named() {
        for (from, to, says) in [
            ("max = 4", "max = 1", "0 < min <= max"),
            ("10.0", "0.0", "must be positive"),
            ("at_once = 2", "at_once = 0", "cannot be understood"),
            ("seed", "sead", "cannot be understood"),
        ] {
            assert!(Workload::parse(&TEXT.replace(from, to)).unwrap_err().to_string().contains(says), "{to}");
        }
    }

    #[test]
    fn the_workloads_that_come_along_are_understood() {
        for text in [include_str!("../workloads/chat.toml"), include_str!("../workloads/rate.toml")] {
            Workload::parse(text).unwrap();
        }
    }
}
