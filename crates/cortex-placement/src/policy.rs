//! What an operator may set about how models come and go.

use serde::{Deserialize, Serialize};

/// How [`decide`](crate::decide) weighs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Who leaves first.
    pub eviction: Eviction,
    /// A model stays at least this long after its load. It doubles with every [`Policy::swaps_calm`] recent swaps of a node, up to
    /// three times, so that models that contend for a device take long turns.
    pub residency_ms_min: u64,
    /// Swaps of a node within the caller's window that count as calm.
    pub swaps_calm: u32,
    /// A model on demand without a request for this long ranks below everything, unless its `idle_unload_s` is shorter.
    pub idle_ms: u64,
    /// A node that is away keeps its claim to be a model's replica this long.
    pub away_ms_max: u64,
    /// After a failed load the node is spared for this long, twice as long after each further failure, up to 64 times as long.
    pub load_retry_ms: u64,
    /// Loads and unloads of a node after which its memory is rebuilt; `None`: never.
    pub defrag_after_cycles: Option<u32>,
    /// Whether models that nobody declared are unloaded where they are found. They make room for declared ones in any case.
    pub unload_undeclared: bool,
}

/// [`Policy::residency_ms_min`] grows to at most 2 to this power times itself.
const RESIDENCY_DOUBLINGS_MAX: u32 = 3;

/// [`Policy::load_retry_ms`] grows to at most 2 to this power times itself.
const RETRY_DOUBLINGS_MAX: u32 = 6;

/// Which of several models makes room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Eviction {
    /// The one that was not asked for the longest.
    #[default]
    Lru,
    /// The one of the lowest priority; among equals as `Lru`.
    Priority,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            eviction: Eviction::Lru,
            residency_ms_min: 10_000,
            swaps_calm: 4,
            idle_ms: 60_000,
            away_ms_max: 10_000,
            load_retry_ms: 5_000,
            defrag_after_cycles: Some(50),
            unload_undeclared: false,
        }
    }
}

impl Policy {
    pub(crate) fn residency_ms(&self, swaps_recent: u32) -> u64 {
        let doublings = swaps_recent.checked_div(self.swaps_calm).unwrap_or(0).min(RESIDENCY_DOUBLINGS_MAX);
        self.residency_ms_min.saturating_mul(1 << doublings)
    }

    pub(crate) fn retry_ms(&self, failures: u32) -> u64 {
        self.load_retry_ms.saturating_mul(1 << failures.saturating_sub(1).min(RETRY_DOUBLINGS_MAX))
    }
}
