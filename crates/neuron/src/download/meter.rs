//! How far a download is: a percentage for the model's status, and a bar where somebody watches.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressStyle};

/// Told each new percentage, 0 to 100, in rising order.
pub type ProgressFn = Arc<dyn Fn(u8) + Send + Sync>;

pub(crate) struct Meter {
    done: AtomicU64,
    told: AtomicU64,
    total: u64,
    tell: ProgressFn,
    bar: ProgressBar,
}

impl Meter {
    /// `total` bytes are to come, of which `tell` hears; `bar` shows them, too.
    pub(crate) fn new(total: u64, tell: ProgressFn, bar: ProgressBar) -> Self {
        Self { done: AtomicU64::new(0), told: AtomicU64::new(0), total, tell, bar }
    }

    /// Shows and tells nothing.
    pub(crate) fn hidden() -> Self {
        Self::new(0, Arc::new(|_| ()), ProgressBar::hidden())
    }

    /// `bytes` more are here.
    pub(crate) fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.bar.set_position(done);
        let percent = (done.min(self.total) * 100).checked_div(self.total).unwrap_or(0);
        if self.told.fetch_max(percent, Ordering::Relaxed) < percent {
            (self.tell)(u8::try_from(percent).unwrap_or(100));
        }
    }

    /// `bytes` of what was here had to be thrown away.
    pub(crate) fn take_back(&self, bytes: u64) {
        self.bar.set_position(self.done.fetch_sub(bytes, Ordering::Relaxed).saturating_sub(bytes));
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A bar on stderr, which shows itself only where that is a terminal.
pub(crate) fn bar(name: &str, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total).with_message(name.to_owned());
    if let Ok(style) = ProgressStyle::with_template("  {msg}  {bar:24} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left") {
        bar.set_style(style);
    }
    bar
}
