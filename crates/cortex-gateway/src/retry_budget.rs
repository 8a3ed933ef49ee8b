//! How many requests may be sent twice. Where nodes are merely overloaded, repeating what they refuse makes it worse.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Each request adds so much, …
const DEPOSIT: i64 = 1;
/// … and a repetition takes so much: one request in ten may be repeated.
const PRICE: i64 = 10;
/// Repetitions that can be saved up.
const SAVED_MAX: i64 = 100 * PRICE;
/// What there is at the start, and what comes back with time, so that a quiet gateway can repeat as well.
const START: i64 = 10 * PRICE;
const REFILL_EVERY: Duration = Duration::from_secs(1);

/// The account of all repetitions of one gateway.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    saved: AtomicI64,
    started: Instant,
    refilled_s: AtomicU64,
}

impl RetryBudget {
    pub(crate) fn new(now: Instant) -> Self {
        Self { saved: AtomicI64::new(START), started: now, refilled_s: AtomicU64::new(0) }
    }

    /// A request came.
    pub(crate) fn deposit(&self) {
        self.add(DEPOSIT, SAVED_MAX);
    }

    /// Whether a request may be repeated; if so, it is paid for.
    pub(crate) fn withdraw(&self, now: Instant) -> bool {
        self.refill(now);
        let pay = |saved: i64| (saved >= PRICE).then_some(saved - PRICE);
        self.saved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay).is_ok()
    }

    fn refill(&self, now: Instant) {
        let elapsed_s = now.saturating_duration_since(self.started).as_secs() / REFILL_EVERY.as_secs();
        let before = self.refilled_s.fetch_max(elapsed_s, Ordering::Relaxed);
        if let Ok(seconds @ 1..) = i64::try_from(elapsed_s.saturating_sub(before)) {
            self.add(seconds.saturating_mul(PRICE), START);
        }
    }

    /// Up to `max`; what is above it already stays.
    fn add(&self, amount: i64, max: i64) {
        let grown = |saved: i64| (saved < max).then(|| saved.saturating_add(amount).min(max));
        let _ = self.saved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_request_in_ten_may_be_repeated() {
        let now = Instant::now();
        let budget = RetryBudget::new(now);
        let mut repeated = 0;
        for _ in 0..10_000 {
            budget.deposit();
            while budget.withdraw(now) {
                repeated += 1;
            }
        }
        assert_eq!(repeated, 10_000 / 10 + START / PRICE);
    }

    #[test]
    fn a_quiet_gateway_gets_its_first_repetitions_back_and_no_more() {
        let now = Instant::now();
        let budget = RetryBudget::new(now);
        let spend = |after_s: u64| std::iter::repeat(()).take_while(|()| budget.withdraw(now + Duration::from_secs(after_s))).count();
        assert_eq!([0, 0, 1, 4, 3, 1_000].map(spend), [10, 0, 1, 3, 0, 10]);
    }

    #[test]
    fn savings_have_a_limit() {
        let now = Instant::now();
        let budget = RetryBudget::new(now);
        (0..100_000).for_each(|_| budget.deposit());
        assert_eq!(std::iter::repeat(()).take_while(|()| budget.withdraw(now)).count() as i64, SAVED_MAX / PRICE);
    }
}
