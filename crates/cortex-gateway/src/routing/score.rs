//! Which of several nodes is best. The smallest score wins; the fields are compared in order.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::fleet::{Node, Replica};

/// For a request on replicas that are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ServeScore {
    model_tokens: u64,
    node_tokens: u64,
    distance: usize,
}

impl ServeScore {
    /// `distance` is how far the replica is from the one whose turn it is.
    pub(super) fn of(node: &Node, replica: &Replica, distance: usize) -> Self {
        Self { model_tokens: replica.load.tokens(), node_tokens: node.load.tokens(), distance }
    }
}

/// How much busier than the least busy node one may be and still be preferred for what its cache holds: computing a prompt of
/// this many tokens anew costs about as much as waiting for them.
const AFFINITY_TOKENS_MAX: u64 = 8_192;

/// Whether affinity may choose a replica with `tokens` open while another one has only `least`.
pub(super) fn affinity_allows(tokens: u64, least: u64) -> bool {
    tokens <= least + least / 4 + AFFINITY_TOKENS_MAX
}

/// Rendezvous hashing: for each key every node draws a number, and the highest has it. All gateways draw the same, nothing is
/// remembered, and a node that comes or goes moves only its own keys.
pub(super) fn affinity(key: u64, node: &Node) -> u64 {
    xxh3_64_with_seed(node.id.as_str().as_bytes(), key)
}
