//! Which of several nodes is best. The smallest score wins; the fields are compared in order.

use crate::fleet::{Node, Replica};

/// For a request on replicas that are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ServeScore {
    model_tokens: u64,
    node_tokens: u64,
}

impl ServeScore {
    pub(super) fn of(node: &Node, replica: &Replica) -> Self {
        Self { model_tokens: replica.load.tokens(), node_tokens: node.load.tokens() }
    }
}

/// How much busier than the least busy node one may be and still be preferred for what its cache holds: computing a prompt of
/// this many tokens anew costs about as much as waiting for them.
const AFFINITY_TOKENS_MAX: u64 = 8_192;

/// Whether affinity may choose a replica with `tokens` open while another one has only `least`.
pub(super) fn affinity_allows(tokens: u64, least: u64) -> bool {
    tokens <= least + least / 4 + AFFINITY_TOKENS_MAX
}

/// Rendezvous hashing: for each key every node draws a number from the hash of its name, and the highest has it. All gateways draw the
/// same, nothing is remembered, and a node that comes or goes moves only its own keys. Mixed as splitmix64 does.
pub(super) fn affinity(key: u64, lot: u64) -> u64 {
    let mut drawn = key ^ lot;
    drawn = (drawn ^ (drawn >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    drawn = (drawn ^ (drawn >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    drawn ^ (drawn >> 31)
}
