//! The fleet as `GET /v1/models` and `GET /admin/fleet` show it.

use std::time::Instant;

use cortex_core::openai::ModelEntry;
use cortex_core::{Capability, ModelReport, NodeReport, NodeState};

use super::{Fleet, Node, Reach, Standing};

impl Fleet {
    /// The merged entry of `model`; `None` when no node can serve it.
    pub(crate) fn model_entry(&self, model: &str, created: u64) -> Option<ModelEntry> {
        let replicas: Vec<_> = self.replicas(model).collect();
        if replicas.is_empty() {
            return None;
        }
        let reports: Vec<&ModelReport> = replicas.iter().filter_map(|(node, _)| node.models.get(model)).collect();
        let mut capabilities: Vec<Capability> = reports.iter().flat_map(|report| report.capabilities.iter().copied()).collect();
        capabilities.sort_unstable();
        capabilities.dedup();
        let state = replicas.iter().filter(|(node, _)| node.reach == Reach::Ready).map(|(_, replica)| replica.standing).min();
        Some(ModelEntry {
            id: model.into(),
            object: "model".into(),
            created,
            owned_by: "cortex".into(),
            state: state_word(state).into(),
            nodes: replicas.iter().map(|(node, _)| node.id.to_string()).collect(),
            context_length: reports.iter().filter_map(|report| report.context).min(),
            capabilities,
        })
    }

    /// Every node, as operators see it.
    pub(crate) fn report(&self, now: Instant) -> Vec<NodeReport> {
        self.nodes().iter().map(|node| self.node_report(node, now)).collect()
    }

    fn node_report(&self, node: &Node, now: Instant) -> NodeReport {
        let placed = self.placement().models().map(|placed| &placed.spec.model_id);
        let placed = placed.filter(|model| self.placement().places(model, &node.id) && !node.models.contains_key(*model));
        NodeReport {
            name: node.id.clone(),
            endpoint: node.endpoint.to_string(),
            state: node_state(&node.reach, now),
            discovery: node.facts.as_ref().map(|facts| facts.discovery.clone()),
            health: node.facts.as_ref().map(|facts| facts.health.clone()),
            models: node.models.values().cloned().collect(),
            placed: placed.cloned().collect(),
            requests_in_flight: node.load.outstanding(),
            tokens_per_second: node.facts.as_ref().and_then(|facts| facts.tokens_per_second),
            seen_s_ago: node.facts.as_ref().map(|facts| now.saturating_duration_since(facts.seen).as_secs_f64()),
        }
    }
}

fn state_word(best_ready: Option<Standing>) -> &'static str {
    match best_ready {
        Some(Standing::Loaded) => "loaded",
        Some(Standing::Loading) => "loading",
        Some(Standing::Available | Standing::Failed | Standing::Unloading) => "available",
        None => "unavailable",
    }
}

fn node_state(reach: &Reach, now: Instant) -> NodeState {
    match reach {
        Reach::Unknown => NodeState::Unknown,
        Reach::Ready => NodeState::Ready,
        Reach::Draining => NodeState::Draining,
        Reach::Ejected { reason, since } => {
            NodeState::Ejected { reason: reason.clone(), for_s: now.saturating_duration_since(*since).as_secs_f64() }
        }
    }
}
