//! Watching the nodes: one task each, slow while all is well, fast while the node is out.

use std::sync::Arc;

use cortex_core::config::{Limits, Timeouts};
use cortex_core::{ModelId, NodeId};
use neuron_api::ClientError;

use crate::clock;
use crate::fleet::{Fleet, FleetCell, Node, Observation, Reach, Standing};
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::nodes::Nodes;

/// What every node's task knows.
#[derive(Debug)]
pub(crate) struct Poller {
    pub(crate) fleet: Arc<FleetCell>,
    pub(crate) nodes: Arc<Nodes>,
    /// Woken when there is something new to decide on.
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limits: Limits,
    pub(crate) timeouts: Timeouts,
}

impl Poller {
    /// Polls `id` as long as it is configured.
    pub(crate) async fn watch(self: Arc<Self>, id: NodeId) {
        let wanted = |fleet: &Fleet| fleet.node(&id).map(|node| Arc::clone(node.poll_wanted()));
        let Some(doubted) = wanted(&self.fleet.load()) else { return };
        while wanted(&self.fleet.load()).is_some_and(|now| Arc::ptr_eq(&now, &doubted)) {
            let out = matches!(self.reach(&id), Some(Reach::Ejected { .. } | Reach::Unknown));
            let pause = if out { self.timeouts.probe_ms } else { self.timeouts.poll_ms };
            // The pause ends early when somebody has reason to doubt the node, but many doubts make no storm of polls.
            let earliest = tokio::time::Instant::now() + self.timeouts.probe_ms.duration().min(pause.duration());
            let _ = tokio::time::timeout(pause.duration(), doubted.notified()).await;
            tokio::time::sleep_until(earliest).await;
            self.poll(&id).await;
        }
    }

    /// Asks once and takes the answer, or its absence, into the fleet.
    pub(crate) async fn poll(&self, id: &NodeId) {
        let (before, had) = (self.reach(id), self.models(id));
        let answer = tokio::time::timeout(self.timeouts.poll_ms_max.duration(), self.nodes.observe(id)).await;
        match answer {
            Ok(Ok(observation)) => self.observed(id, &observation),
            Ok(Err(ClientError::Unreachable { reason, .. })) => self.fleet.update(|fleet| fleet.ejected(id, &reason, clock::now())),
            Ok(Err(error)) => self.failed(id, &error.to_string()),
            Err(_) => self.failed(id, &format!("no answer within {:?}", self.timeouts.poll_ms_max.duration())),
        }
        let after = self.reach(id);
        log_change(id, before.as_ref(), after.as_ref());
        if before.as_ref().map(std::mem::discriminant) != after.as_ref().map(std::mem::discriminant) || had != self.models(id) {
            self.lifecycle.wake();
        }
    }

    fn observed(&self, id: &NodeId, observation: &Observation) {
        if let Some(twin) = self.twin(id, &observation.discovery.boot_id) {
            let reason = format!("it is the same neuron as `{twin}`; name each neuron once");
            return self.fleet.update(|fleet| fleet.ejected(id, &reason, clock::now()));
        }
        let boot_id = |fleet: &Fleet| fleet.node(id).and_then(|node| node.boot_id().map(str::to_owned));
        let restarted = boot_id(&self.fleet.load()).is_some_and(|before| before != observation.discovery.boot_id);
        self.fleet.update(|fleet| fleet.observed(id, observation));
        if restarted {
            self.metrics.node_restarts.with_label_values(&[id.as_str()]).inc();
            tracing::warn!(node = %id, boot_id = %observation.discovery.boot_id, "the node was restarted");
        }
    }

    /// Another node of the configuration behind which the same process answers.
    fn twin(&self, id: &NodeId, boot_id: &str) -> Option<NodeId> {
        let fleet = self.fleet.load();
        let is_twin = |node: &&Arc<Node>| node.id != *id && node.boot_id() == Some(boot_id) && !matches!(node.reach, Reach::Ejected { .. });
        fleet.nodes().iter().find(is_twin).map(|node| node.id.clone())
    }

    fn failed(&self, id: &NodeId, reason: &str) {
        let failures_max = self.limits.poll_failures_max.get();
        self.fleet.update(|fleet| fleet.poll_failed(id, reason, failures_max, clock::now()));
    }

    fn models(&self, id: &NodeId) -> Vec<(ModelId, Standing)> {
        let fleet = self.fleet.load();
        fleet.node(id).map_or_else(Vec::new, |node| node.standings().map(|(model, standing)| (model.clone(), standing)).collect())
    }

    fn reach(&self, id: &NodeId) -> Option<Reach> {
        self.fleet.load().node(id).map(|node| node.reach.clone())
    }
}

fn log_change(id: &NodeId, before: Option<&Reach>, after: Option<&Reach>) {
    let same = before.map(std::mem::discriminant) == after.map(std::mem::discriminant);
    match after {
        _ if same => {}
        Some(Reach::Ejected { reason, .. }) => tracing::warn!(node = %id, %reason, "the node is out"),
        Some(Reach::Draining) => tracing::info!(node = %id, "the node is draining"),
        Some(Reach::Ready) => tracing::info!(node = %id, "the node is ready"),
        Some(Reach::Unknown) | None => {}
    }
}
