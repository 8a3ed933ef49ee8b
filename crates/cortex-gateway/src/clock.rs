//! The clock that everything here reads. It is tokio's, so that a test can turn it; nothing asks what time of day it is.

use std::time::Instant;

/// The moment it is.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
