//! Where a fleet ends up when each action works at once: what `plan` shows.

use cortex_core::{FleetReport, ModelReport, ModelStatus, NodeReport, NodeState};

use crate::action::{Action, Step};
use crate::decide::decide;
use crate::desired::Desired;
use crate::moment::Moment;
use crate::observed::{Demand, ModelState, Observed, ObservedDevice, ObservedModel, ObservedNode, Reach};
use crate::profile::ComputeCapability;

/// More than any fleet takes; a plan that long would be a mistake of [`decide`].
const ROUNDS_MAX: usize = 10_000;

/// Every load and unload on the way from `observed` to a fleet that wants no more.
pub fn settle(desired: &Desired, mut observed: Observed, now: Moment) -> Vec<Action> {
    let mut steps = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let actions = decide(desired, &observed, &Demand::none(), now);
        let actions: Vec<Action> = actions.into_iter().filter(|action| action.step != Step::Defrag).collect();
        if actions.is_empty() {
            break;
        }
        for action in actions {
            observed.carry_out(&action, now);
            // The unload that follows a drain is the step that counts.
            if !matches!(action.step, Step::Drain { .. }) {
                steps.push(action);
            }
        }
    }
    steps
}

impl Observed {
    /// What a gateway reports. In-flight requests count for none of the models, since the report does not tell them apart.
    pub fn of(report: &FleetReport, now: Moment) -> Self {
        let node = |node: &NodeReport| ObservedNode {
            id: node.name.clone(),
            reach: if node.state == NodeState::Ready { Reach::Ready } else { Reach::Away { since: Moment(0) } },
            devices: node
                .discovery
                .iter()
                .flat_map(|facts| &facts.devices)
                .map(|device| ObservedDevice {
                    memory_mb: device.memory_total_bytes >> 20,
                    foreign_mb: 0,
                    compute_capability: device.compute_capability.as_deref().and_then(ComputeCapability::parse),
                    poisoned: false,
                })
                .collect(),
            models: node.models.iter().filter_map(|model| observed_model(node, model, now)).collect(),
            generation: node.models.iter().map(|model| model.generation).max().unwrap_or(0),
            cycles: 0,
            swaps_recent: 0,
        };
        Self { nodes: report.nodes.iter().map(node).collect(), ..Self::default() }
    }

    /// The action works, at once.
    fn carry_out(&mut self, action: &Action, now: Moment) {
        let Some(node) = self.nodes.iter_mut().find(|node| node.id == action.node) else { return };
        node.generation = action.generation;
        match &action.step {
            Step::Load { model } => {
                node.models.retain(|held| held.id != *model);
                let (id, devices) = (model.clone(), action.devices.clone());
                node.models.push(ObservedModel {
                    id,
                    state: ModelState::Loaded,
                    since: now,
                    devices,
                    device_mb: 0,
                    in_flight: 0,
                    last_used: now,
                });
            }
            Step::Drain { model } => {
                for held in node.models.iter_mut().filter(|held| held.id == *model) {
                    held.state = ModelState::Draining;
                    held.in_flight = 0;
                }
            }
            Step::Unload { model } => node.models.retain(|held| held.id != *model),
            Step::Defrag => node.cycles = 0,
        }
    }
}

fn observed_model(node: &NodeReport, model: &ModelReport, now: Moment) -> Option<ObservedModel> {
    let state = match model.status {
        ModelStatus::Loaded => ModelState::Loaded,
        ModelStatus::Loading { .. } => ModelState::Loading,
        ModelStatus::Unloading => ModelState::Unloading,
        ModelStatus::Available | ModelStatus::Failed { .. } => return None,
    };
    let devices: Vec<usize> = node
        .discovery
        .iter()
        .flat_map(|facts| &facts.devices)
        .enumerate()
        .filter(|(_, device)| model.devices.contains(&device.name))
        .map(|(index, _)| index)
        .collect();
    let device_mb = (model.memory_used_bytes >> 20) / devices.len().max(1) as u64;
    Some(ObservedModel { id: model.id.clone(), state, since: Moment(0), devices, device_mb, in_flight: 0, last_used: now })
}
