//! A rate as one number: when everything asked for so far would have been due. No lock, no timer, no queue.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// At most so much per minute, all of it at once if need be.
#[derive(Debug)]
pub(crate) struct Rate {
    /// Nanoseconds that one unit takes.
    unit_ns: u64,
    /// On the clock of whoever asks: when what was asked for so far is paid off.
    due_ns: AtomicU64,
}

const MINUTE_NS: u64 = 60_000_000_000;

impl Rate {
    pub(crate) fn per_minute(max: u32) -> Self {
        Self { unit_ns: MINUTE_NS / u64::from(max.max(1)), due_ns: AtomicU64::new(0) }
    }

    /// Whether this is the rate of so much per minute.
    pub(crate) fn is_per_minute(&self, max: u32) -> bool {
        self.unit_ns == MINUTE_NS / u64::from(max.max(1))
    }

    /// Takes `units` if that stays within a minute's worth.
    ///
    /// # Errors
    /// How long until it would.
    pub(crate) fn take(&self, units: u64, now: Duration) -> Result<(), Duration> {
        let now_ns = nanoseconds(now);
        let cost_ns = self.unit_ns.saturating_mul(units);
        let taken = |due: u64| {
            let due = due.max(now_ns).saturating_add(cost_ns);
            (due <= now_ns.saturating_add(MINUTE_NS)).then_some(due)
        };
        match self.due_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken) {
            Ok(_) => Ok(()),
            Err(due) => Err(Duration::from_nanos(due.max(now_ns).saturating_add(cost_ns).saturating_sub(now_ns.saturating_add(MINUTE_NS)))),
        }
    }

    /// Whether anything may be taken.
    ///
    /// # Errors
    /// How long until it may.
    pub(crate) fn ask(&self, now: Duration) -> Result<(), Duration> {
        self.take(1, now).inspect(|()| {
            self.due_ns.fetch_sub(self.unit_ns, Ordering::Relaxed);
        })
    }

    /// Takes `units` that were used already, even beyond the limit: what follows waits the longer.
    pub(crate) fn charge(&self, units: u64, now: Duration) {
        let (now_ns, cost_ns) = (nanoseconds(now), self.unit_ns.saturating_mul(units));
        let _ = self.due_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |due| Some(due.max(now_ns).saturating_add(cost_ns)));
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn a_minutes_worth_may_come_at_once_and_then_one_by_one() {
        let rate = Rate::per_minute(60);
        let took = |at: Duration| std::iter::repeat(()).take_while(|()| rate.take(1, at).is_ok()).count();
        assert_eq!([S(100), S(100), S(101), S(111), S(1_000)].map(took), [60, 0, 1, 10, 60]);
        assert_eq!(rate.take(1, S(1_000)), Err(S(1)));
        assert_eq!(rate.take(61, S(5_000)), Err(S(1)), "more than a minute's worth never fits");
    }

    #[test]
    fn what_was_used_beyond_the_limit_is_waited_for() {
        let rate = Rate::per_minute(600);
        assert_eq!(rate.ask(S(0)), Ok(()));
        rate.charge(1_200, S(0));
        assert_eq!(rate.ask(S(0)), Err(S(60) + Duration::from_millis(100)));
        assert_eq!(rate.ask(S(61)), Ok(()));
    }
}
