//! The placement and the policy, indexed once so that each decision is quick.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;

use cortex_core::{MemoryReport, ModelId, NodeId};

use crate::placement::{HostPlacement, Placement};
use crate::policy::Policy;
use crate::profile::{Footprint, FootprintOrigin, ModelProfile, Replicas, Residency, Spot};

/// What the fleet should come to.
#[derive(Clone, Debug)]
pub struct Desired {
    placement: Placement,
    policy: Policy,
    pub(crate) models: Vec<Wanted>,
    /// By model: what each look asks of all of them, side by side.
    pub(crate) terms: Vec<Terms>,
    /// The hosts that may hold each model, one model's after another's, in order.
    allowed: Vec<u32>,
    /// Those held always, in the order in which they get their places.
    pub(crate) residents: Vec<usize>,
    hosts: Vec<HostPlacement>,
    host_ids: Vec<NodeId>,
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
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.write_u64(u64::from_le_bytes(*word)));
        if !rest.is_empty() {
            self.write_u64(rest.iter().fold(0, |word, byte| (word << 8) | u64::from(*byte)));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    /// A text is followed by one, so that two in a row are not one; here there is one only.
    fn write_u8(&mut self, _: u8) {}

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
    /// Hosts that may hold it, in order, each with how; empty: any host.
    pub(crate) spots: Vec<(usize, Spot)>,
    /// Where the certificate puts its replicas.
    pub(crate) homes: Vec<Home>,
    /// Where the certificate would load it on demand.
    pub(crate) witness: Option<Home>,
}

/// The part of a model's profile that is looked at even if nothing is done about the model.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) rank: Rank,
    pub(crate) replicas: Replicas,
    pub(crate) parallel: usize,
    pub(crate) idle_unload_ms: Option<u64>,
    /// Its footprint's, where there is one.
    pub(crate) device_mb: Option<u64>,
    /// Its part of [`Desired::allowed`]; `None`: any host.
    allowed: Option<Range<usize>>,
}

/// Pinned before others, then by priority.
pub(crate) type Rank = (bool, i32);

/// Sequences of full length that a model takes when its spec does not say.
const PARALLEL_DEFAULT: usize = 4;

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
        let mut allowed = Vec::new();
        let terms = models.iter().map(|wanted| Terms::of(wanted, &mut allowed)).collect();
        let hosts = placement.hosts.values().cloned().collect();
        let host_ids = placement.hosts.keys().cloned().collect();
        Self { placement, policy, models, terms, allowed, residents, hosts, host_ids, model_index, host_index }
    }

    /// The placement.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// How models come and go.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What is known of the memory of each model, with what was `measured` of it, by name.
    pub fn memory(&self, measured: &BTreeMap<ModelId, u64>) -> Vec<MemoryReport> {
        let of = |id: &ModelId, footprint: Option<Footprint>| {
            let mb = |origin| footprint.filter(|footprint| footprint.origin == origin).map(|footprint| footprint.device_mb);
            MemoryReport {
                model: id.clone(),
                declared_mb: mb(FootprintOrigin::Declared),
                computed_mb: mb(FootprintOrigin::Checkpoint),
                measured_mb: measured.get(id).copied(),
            }
        };
        let models = &self.placement.models;
        let mut all: Vec<MemoryReport> = models.iter().map(|(id, profile)| of(id, profile.footprint)).collect();
        all.extend(measured.keys().filter(|id| !models.contains_key(*id)).map(|id| of(id, None)));
        all.retain(|one| one.declared_mb.is_some() || one.computed_mb.is_some() || one.measured_mb.is_some());
        all.sort_by(|one, other| one.model.cmp(&other.model));
        all
    }

    pub(crate) fn model(&self, id: &ModelId) -> Option<usize> {
        self.model_index.get(id).copied()
    }

    /// The host of this name; nodes usually come in the order of hosts, so that it is most likely at `hint`.
    pub(crate) fn host(&self, id: &NodeId, hint: usize) -> Option<usize> {
        if self.host_ids.get(hint) == Some(id) { Some(hint) } else { self.host_index.get(id).copied() }
    }

    /// Whether a node that is `host` of the placement (or none of its hosts) may hold `model`.
    pub(crate) fn allows(&self, model: usize, host: Option<usize>) -> bool {
        let Some(allowed) = &self.terms[model].allowed else { return true };
        host.is_some_and(|host| self.allowed[allowed.clone()].binary_search(&(host as u32)).is_ok())
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
        let spots = profile.placement.iter().filter_map(|(host, spot)| Some((*hosts.get(host)?, spot.clone())));
        let mut spots: Vec<(usize, Spot)> = spots.collect();
        spots.sort_unstable_by_key(|(host, _)| *host);
        Self { id: id.clone(), profile: profile.clone(), spots, homes: Vec::new(), witness: None }
    }

    /// How `host` may hold it.
    pub(crate) fn spot(&self, host: usize) -> Option<&Spot> {
        self.spots.binary_search_by_key(&host, |(host, _)| *host).ok().map(|at| &self.spots[at].1)
    }
}

impl Terms {
    fn of(wanted: &Wanted, allowed: &mut Vec<u32>) -> Self {
        let profile = &wanted.profile;
        let first = allowed.len();
        allowed.extend(wanted.spots.iter().map(|(host, _)| *host as u32));
        Self {
            allowed: (!profile.placement.is_empty()).then_some(first..allowed.len()),
            rank: (profile.residency == Residency::Pinned, profile.priority),
            replicas: profile.replicas,
            parallel: profile.spec.parallel.unwrap_or(PARALLEL_DEFAULT),
            idle_unload_ms: profile.idle_unload_s.map(|s| s.saturating_mul(1000)),
            device_mb: profile.footprint.map(|footprint| footprint.device_mb),
        }
    }
}
