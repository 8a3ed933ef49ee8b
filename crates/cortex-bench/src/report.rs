//! The figures of a run, for people and for programs.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::target::Timing;
use crate::workload::Goal;

/// What a run comes to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Requests that were answered whole.
    pub answered: usize,
    /// Errors by their text, each with its count.
    pub errors: BTreeMap<String, usize>,
    /// Length of the run.
    pub seconds: f64,
    /// Answered requests per second.
    pub requests_per_second: f64,
    /// Answer tokens per second, over all requests.
    pub tokens_per_second: f64,
    /// Answers within the goal, per second.
    pub goodput_per_second: f64,
    /// Time to the first token, in milliseconds.
    pub ttft_ms: Spread,
    /// Time between tokens, in milliseconds.
    pub itl_ms: Spread,
    /// Time to the end of the answer, in milliseconds.
    pub whole_ms: Spread,
}

/// How a figure is spread; all zero where there was nothing to measure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// Half are at most this.
    pub p50: f64,
    /// 95 of 100 are at most this.
    pub p95: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Report {
    /// From the outcome of each request, in a run that took `length`.
    pub fn of(outcomes: &[Result<Timing, String>], length: Duration, goal: &Goal) -> Self {
        let answered: Vec<&Timing> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).collect();
        let mut errors = BTreeMap::new();
        for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            *errors.entry(error.clone()).or_insert(0) += 1;
        }
        let seconds = length.as_secs_f64();
        let per_second = |count: f64| if seconds > 0.0 { count / seconds } else { 0.0 };
        let ms = |duration: &Duration| duration.as_secs_f64() * 1e3;
        Self {
            errors,
            seconds,
            requests_per_second: per_second(answered.len() as f64),
            tokens_per_second: per_second(answered.iter().map(|timing| timing.tokens as f64).sum()),
            goodput_per_second: per_second(answered.iter().filter(|timing| meets(timing, goal)).count() as f64),
            ttft_ms: Spread::of(answered.iter().map(|timing| ms(&timing.ttft)).collect()),
            itl_ms: Spread::of(answered.iter().flat_map(|timing| timing.gaps.iter().map(ms)).collect()),
            whole_ms: Spread::of(answered.iter().map(|timing| ms(&timing.whole)).collect()),
            answered: answered.len(),
        }
    }
}

fn meets(timing: &Timing, goal: &Goal) -> bool {
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    let mean_gap = ms(timing.gaps.iter().sum()) / timing.gaps.len().max(1) as f64;
    goal.ttft_ms.is_none_or(|max| ms(timing.ttft) <= max) && goal.itl_ms.is_none_or(|max| mean_gap <= max)
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        let Some(last) = values.len().checked_sub(1) else { return Self::default() };
        values.sort_by(f64::total_cmp);
        // The smallest value that the given share is at most.
        let at = |share: f64| values[((share * values.len() as f64).ceil() as usize).clamp(1, values.len()) - 1];
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Self { mean, p50: at(0.5), p95: at(0.95), p99: at(0.99), max: values[last] }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failed: usize = self.errors.values().sum();
        writeln!(f, "{} answered, {failed} failed in {:.1} s", self.answered, self.seconds)?;
        writeln!(
            f,
            "{:.2} requests/s, {:.1} tokens/s, {:.2} requests/s within the goal",
            self.requests_per_second, self.tokens_per_second, self.goodput_per_second
        )?;
        writeln!(f, "{:24} {:>9} {:>9} {:>9} {:>9} {:>9}", "milliseconds", "mean", "p50", "p95", "p99", "max")?;
        for (name, spread) in [("to the first token", self.ttft_ms), ("between tokens", self.itl_ms), ("to the end", self.whole_ms)] {
            let Spread { mean, p50, p95, p99, max } = spread;
            writeln!(f, "{name:24} {mean:9.2} {p50:9.2} {p95:9.2} {p99:9.2} {max:9.2}")?;
        }
        for (error, count) in &self.errors {
            writeln!(f, "{count} x {error}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_definition() {
        let ms = Duration::from_millis;
        let timing = |ttft, gap| Timing { ttft: ms(ttft), whole: ms(ttft + 2 * gap), gaps: vec![ms(gap); 2], tokens: 3 };
        let outcomes: Vec<Result<Timing, String>> =
            (1..=100).map(|i| Ok(timing(i, 10))).chain([Err("503".into()), Err("503".into())]).collect();
        let goal = Goal { ttft_ms: Some(50.0), itl_ms: Some(10.0) };
        let report = Report::of(&outcomes, Duration::from_secs(10), &goal);
        assert_eq!((report.answered, report.errors["503"]), (100, 2));
        assert_eq!((report.requests_per_second, report.tokens_per_second, report.goodput_per_second), (10.0, 30.0, 5.0));
        let Spread { mean, p50, p95, p99, max } = report.ttft_ms;
        assert!((mean - 50.5).abs() < 1e-9);
        assert_eq!((p50, p95, p99, max), (50.0, 95.0, 99.0, 100.0));
        assert_eq!(Report::of(&[], Duration::ZERO, &Goal::default()).ttft_ms, Spread::default());
    }
}
