//! Ranks that wait for one that does not come: after a while somebody must part them.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::error;

use crate::device::collective::Collective;

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(250);

/// The steps of one split model that are under way.
pub(super) struct Watchdog {
    step_max: Duration,
    /// When each began, oldest first.
    begun: Mutex<VecDeque<Instant>>,
    /// Whether the ranks were parted.
    parted: watch::Sender<bool>,
}

impl Watchdog {
    /// Parts the ranks of `comm` when a step takes longer than `step_max`. The thread ends with the last handle.
    pub(super) fn start(comm: Arc<dyn Collective>, step_max: Duration) -> io::Result<Arc<Self>> {
        let watchdog = Arc::new(Self { step_max, begun: Mutex::default(), parted: watch::Sender::new(false) });
        let watched = Arc::downgrade(&watchdog);
        std::thread::Builder::new().name("ranks-watchdog".into()).spawn(move || watch(&watched, &*comm))?;
        Ok(watchdog)
    }

    /// A step begins.
    pub(super) fn begin(&self) {
        self.begun().push_back(Instant::now());
    }

    /// The oldest step has ended.
    pub(super) fn end(&self) {
        self.begun().pop_front();
    }

    /// Waits until the ranks are parted.
    pub(super) async fn parting(self: Arc<Self>) {
        // The watched value lives as long as `self`.
        let _ = self.parted.subscribe().wait_for(|parted| *parted).await;
    }

    fn is_overdue(&self, now: Instant) -> bool {
        // A step waits for the one before it, so that the oldest tells.
        self.begun().front().is_some_and(|begun| now.saturating_duration_since(*begun) > self.step_max)
    }

    fn begun(&self) -> std::sync::MutexGuard<'_, VecDeque<Instant>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn watch(watchdog: &Weak<Watchdog>, comm: &dyn Collective) {
    while let Some(watchdog) = watchdog.upgrade() {
        if watchdog.is_overdue(Instant::now()) {
            let step_max_s = watchdog.step_max.as_secs_f64();
            error!(step_max_s, "a step does not end: its ranks are parted, and the model must be loaded anew");
            // NCCL's abort may wait for captured steps, which go only after the engine knows.
            watchdog.parted.send_replace(true);
            drop(watchdog);
            comm.abort();
            return;
        }
        drop(watchdog);
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_step_tells_whether_one_is_overdue() {
        let watchdog = Watchdog { step_max: Duration::from_secs(2), begun: Mutex::default(), parted: watch::Sender::new(false) };
        let start = Instant::now();
        watchdog.begun().extend([start, start + Duration::from_secs(1)]);
        let overdue = |after_s| watchdog.is_overdue(start + Duration::from_secs(after_s));
        assert_eq!([overdue(1), overdue(2), overdue(3)], [false, false, true]);
        watchdog.end();
        assert_eq!([overdue(3), overdue(4)], [false, true]);
        watchdog.end();
        assert!(!overdue(100));
    }
}
