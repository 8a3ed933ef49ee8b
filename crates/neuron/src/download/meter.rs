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
    /// `total` bytes are to come. The bar draws on stderr, and only where that is a terminal.
    pub(crate) fn new(name: &str, total: u64, tell: ProgressFn) -> Self {
        let bar = ProgressBar::new(total).with_message(name.to_owned());
        if let Ok(style) = ProgressStyle::with_template("  {msg}  {bar:24} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left") {
            bar.set_style(style);
        }
        Self { done: AtomicU64::new(0), told: AtomicU64::new(0), total, tell, bar }
    }

    /// Shows and tells nothing.
    pub(crate) fn hidden() -> Self {
        let (done, told) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { done, told, total: 0, tell: Arc::new(|_| ()), bar: ProgressBar::hidden() }
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
