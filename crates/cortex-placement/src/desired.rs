//! The placement and the policy, indexed once so that each decision is quick.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use cortex_core::{ModelId, NodeId};

use crate::placement::{HostPlacement, Placement};
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
    hosts: Vec<HostPlacement>,
    model_index: Index<ModelId>,
    host_index: Index<NodeId>,
}

/// Numbers by name. A decision looks up every name of the fleet, and names come from those who run it: quick hashing is worth more here
/// than safety from made-up collisions.
type Index<Id> = HashMap<Id, usize, BuildHasherDefault<Quick>>;

/// Multiplies and rotates eight bytes at a time.
#[derive(Clone, Copy, Debug, Default)]
struct Quick(u64);

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = (self.0.rotate_left(5) ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    fn finish(&self) -> u64 {
        // The table looks at the highest bits and at the lowest, and a product is best at the highest.
        self.0 ^ (self.0 >> 32)
    }
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
    pub(crate) witness: Option<Home>,
}

/// A proven place of a replica.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    pub(crate) host: usize,
    pub(crate) devices: Vec<usize>,
}

impl Desired {
    /// Indexes `placement`.
    pub fn new(placement: Placement, policy: Policy) -> Self {
        let host_index: Index<NodeId> = placement.hosts.keys().cloned().enumerate().map(|(at, host)| (host, at)).collect();
        let mut models: Vec<Wanted> = placement.models.iter().map(|(id, profile)| Wanted::new(id, profile, &host_index)).collect();
        let model_index: Index<ModelId> = models.iter().enumerate().map(|(at, wanted)| (wanted.id.clone(), at)).collect();
        for assignment in &placement.certificate.residents {
            if let (Some(model), Some(host)) = (model_index.get(&assignment.model), host_index.get(&assignment.host)) {
                models[*model].homes.push(Home { host: *host, devices: assignment.devices.clone() });
            }
        }
        for witness in &placement.certificate.witnesses {
            if let (Some(model), Some(host)) = (model_index.get(&witness.model), host_index.get(&witness.host)) {
                models[*model].witness = Some(Home { host: *host, devices: witness.devices.clone() });
            }
        }
        let mut residents: Vec<usize> = (0..models.len()).filter(|at| models[*at].profile.replicas.min > 0).collect();
        residents.sort_by_key(|at| {
            let profile = &models[*at].profile;
            let size = profile.footprint.map_or(0, |footprint| footprint.device_mb * footprint.devices as u64);
            (profile.residency != Residency::Pinned, -i64::from(profile.priority), std::cmp::Reverse(size))
        });
        let hosts = placement.hosts.values().cloned().collect();
        Self { placement, policy, models, residents, hosts, model_index, host_index }
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

    pub(crate) fn host_placement(&self, host: usize) -> &HostPlacement {
        &self.hosts[host]
    }

    pub(crate) fn hosts_len(&self) -> usize {
        self.host_index.len()
    }
}

impl Wanted {
    fn new(id: &ModelId, profile: &ModelProfile, hosts: &Index<NodeId>) -> Self {
        let spots = profile.placement.iter().filter_map(|(host, spot)| Some((*hosts.get(host)?, spot.clone()))).collect();
        Self { id: id.clone(), profile: profile.clone(), spots, homes: Vec::new(), witness: None }
    }

    /// Whether a node that is `host` of the placement (or none of its hosts) may hold it.
    pub(crate) fn allows(&self, host: Option<usize>) -> bool {
        self.profile.placement.is_empty() || host.is_some_and(|host| self.spots.contains_key(&host))
    }
}
