//! The clock that everything here reads. It is tokio's, so that a test can turn it, and it is monotonic, so that nothing here is decided by
//! the time of day, which may jump. That is only shown.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The moment it is.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The time of day, for those outside.
#[expect(clippy::disallowed_methods, reason = "people and programs outside are shown the time of day")]
pub(crate) fn time_of_day() -> SystemTime {
    SystemTime::now()
}

/// Seconds since 1970: `created` and `created_at` in answers.
pub(crate) fn unix_s() -> u64 {
    time_of_day().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
