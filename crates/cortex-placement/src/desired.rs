//! The placement and the policy, indexed once so that each decision is quick.

use std::collections::HashMap;

use cortex_core::{ModelId, NodeId};

use crate::placement::Placement;
use crate::policy::Policy;
use crate::profile::{ModelProfile, Residency, Spot};

/// What the fleet should come to.
#[derive(Clone, Debug)]
pub struct Desired {
    placement: Placement,
    policy: Policy,
    pub(crate) models: Vec<Wanted>,
    /// Those held always, in the order in which they get their places.
    pub(crate) residents: Vec<usize>,
    model_index: HashMap<ModelId, usize>,
    host_index: HashMap<NodeId, usize>,
}

/// One model, with hosts as numbers.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) id: ModelId,
    pub(crate) profile: ModelProfile,
    /// By host; empty: any host.
    pub(crate) spots: HashMap<usize, Spot>,
    /// Where the certificate puts its replicas.
    pub(crate) homes: Vec<Home>,
    /// Where the certificate would load it on demand.
    pub(crate) witness: Option<usize>,
}

/// A proven place of a resident replica.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    pub(crate) host: usize,
    pub(crate) devices: Vec<usize>,
}

impl Desired {
    /// Indexes `placement`.
    pub fn new(placement: Placement, policy: Policy) -> Self {
        let host_index: HashMap<NodeId, usize> = placement.hosts.keys().cloned().enumerate().map(|(at, host)| (host, at)).collect();
        let mut models: Vec<Wanted> = placement.models.iter().map(|(id, profile)| Wanted::new(id, profile, &host_index)).collect();
        let model_index: HashMap<ModelId, usize> = models.iter().enumerate().map(|(at, wanted)| (wanted.id.clone(), at)).collect();
        for assignment in &placement.certificate.residents {
            if let (Some(model), Some(host)) = (model_index.get(&assignment.model), host_index.get(&assignment.host)) {
                models[*model].homes.push(Home { host: *host, devices: assignment.devices.clone() });
            }
        }
        for witness in &placement.certificate.witnesses {
            if let Some(model) = model_index.get(&witness.model) {
                models[*model].witness = host_index.get(&witness.host).copied();
            }
        }
        let mut residents: Vec<usize> = (0..models.len()).filter(|at| models[*at].profile.replicas.min > 0).collect();
        residents.sort_by_key(|at| {
            let profile = &models[*at].profile;
            let size = profile.footprint.map_or(0, |footprint| footprint.device_mb * footprint.devices as u64);
            (profile.residency != Residency::Pinned, -i64::from(profile.priority), std::cmp::Reverse(size))
        });
        Self { placement, policy, models, residents, model_index, host_index }
    }

    /// The placement.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// How models come and go.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(crate) fn model(&self, id: &ModelId) -> Option<usize> {
        self.model_index.get(id).copied()
    }

    pub(crate) fn host(&self, id: &NodeId) -> Option<usize> {
        self.host_index.get(id).copied()
    }

    pub(crate) fn hosts_len(&self) -> usize {
        self.host_index.len()
    }
}

impl Wanted {
    fn new(id: &ModelId, profile: &ModelProfile, hosts: &HashMap<NodeId, usize>) -> Self {
        let spots = profile.placement.iter().filter_map(|(host, spot)| Some((*hosts.get(host)?, spot.clone()))).collect();
        Self { id: id.clone(), profile: profile.clone(), spots, homes: Vec::new(), witness: None }
    }

    /// Whether a node that is `host` of the placement (or none of its hosts) may hold it.
    pub(crate) fn allows(&self, host: Option<usize>) -> bool {
        self.profile.placement.is_empty() || host.is_some_and(|host| self.spots.contains_key(&host))
    }
}
