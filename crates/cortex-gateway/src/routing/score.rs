//! Which of several nodes is best. The smallest score wins; the fields are compared in order.

use std::cmp::Reverse;

use crate::fleet::{Node, Replica, Standing};

/// For a request on replicas that are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ServeScore {
    model_outstanding: usize,
    node_outstanding: usize,
    distance: usize,
}

impl ServeScore {
    /// `distance` is how far the replica is from the one whose turn it is.
    pub(super) fn of(node: &Node, replica: &Replica, distance: usize) -> Self {
        Self { model_outstanding: replica.load.outstanding(), node_outstanding: node.load.outstanding(), distance }
    }
}

/// For a load on nodes that have the model on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LoadScore {
    standing: Standing,
    node_outstanding: usize,
    memory_free_bytes: Reverse<u64>,
}

impl LoadScore {
    pub(super) fn of(node: &Node, replica: &Replica) -> Self {
        let free = |device: &cortex_core::DeviceHealth| device.memory_free_bytes;
        let memory_free_bytes = node.facts.as_ref().map_or(0, |facts| facts.health.devices.iter().map(free).sum());
        Self { standing: replica.standing, node_outstanding: node.load.outstanding(), memory_free_bytes: Reverse(memory_free_bytes) }
    }
}
