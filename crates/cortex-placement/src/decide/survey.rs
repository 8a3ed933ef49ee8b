//! The fleet during one decision: what is observed, less what was claimed so far. Flat tables, because a fleet may have thousands of
//! nodes and a decision must cost less than a millisecond.

use std::ops::Range;

use crate::desired::Desired;
use crate::moment::Moment;
use crate::observed::{Demand, ModelDemand, ModelState, Observed, ObservedModel, ObservedNode, Reach};
use crate::profile::ComputeCapability;

/// What is known so far.
pub(super) struct Survey<'a> {
    pub(super) desired: &'a Desired,
    demand: &'a Demand,
    pub(super) now: Moment,
    pub(super) nodes: Vec<NodeView<'a>>,
    pub(super) devices: Vec<DeviceView>,
    pub(super) replicas: Vec<ReplicaView<'a>>,
    /// By host of the placement: the node of that name.
    pub(super) node_of_host: Vec<Option<usize>>,
    /// By model: replicas on ready nodes that serve or are being loaded.
    pub(super) serving: Vec<usize>,
    /// By model: the same, and replicas on nodes that will soon be back.
    pub(super) kept: Vec<usize>,
    /// By model: a load is under way, or has got its place during this decision.
    pub(super) loading: Vec<bool>,
    /// By model: requests open on all its replicas.
    pub(super) in_flight: Vec<usize>,
    /// By model: MiB that one replica takes on each device; `None` when nobody knows yet.
    needs_mb: Vec<Option<u64>>,
    /// Replicas in service where the placement does not want their model.
    pub(super) misplaced: Vec<usize>,
    /// Replicas that drain.
    pub(super) draining: Vec<usize>,
}

pub(super) struct NodeView<'a> {
    pub(super) observed: &'a ObservedNode,
    pub(super) host: Option<usize>,
    pub(super) devices: Range<usize>,
    pub(super) replicas: Range<usize>,
    /// Of the last action so far.
    pub(super) generation: u64,
    /// An action or a claim concerns it.
    pub(super) touched: bool,
    /// Models that got a place on it during this decision: it holds one replica of each.
    pub(super) claimed: Vec<usize>,
}

/// Memory in MiB; negative where more is taken than should be.
#[derive(Clone, Copy)]
pub(super) struct DeviceView {
    pub(super) memory_mb: u64,
    pub(super) compute_capability: Option<ComputeCapability>,
    /// Can be taken at once.
    pub(super) free_mb: i64,
    /// Can be taken once everything that leaves has left.
    pub(super) soon_mb: i64,
    /// A load is under way on it.
    pub(super) loading: bool,
    pub(super) poisoned: bool,
}

#[derive(Clone, Copy)]
pub(super) struct ReplicaView<'a> {
    pub(super) observed: &'a ObservedModel,
    pub(super) node: usize,
    /// Absent for a model that nobody declared.
    pub(super) model: Option<usize>,
    /// MiB on each of its devices.
    pub(super) size_mb: i64,
    /// It was told to leave, before or now.
    pub(super) leaving: bool,
    /// It had been told to leave and stays after all.
    pub(super) taken_back: bool,
}

impl<'a> Survey<'a> {
    pub(super) fn take(desired: &'a Desired, observed: &'a Observed, demand: &'a Demand, now: Moment) -> Self {
        let models = desired.models.len();
        let mut survey = Self {
            desired,
            demand,
            now,
            nodes: Vec::with_capacity(observed.nodes.len()),
            devices: Vec::with_capacity(observed.nodes.len() * 2),
            replicas: Vec::with_capacity(observed.nodes.len() * 4),
            node_of_host: vec![None; desired.hosts_len()],
            serving: vec![0; models],
            kept: vec![0; models],
            loading: vec![false; models],
            in_flight: vec![0; models],
            needs_mb: desired.terms.iter().map(|terms| terms.device_mb).collect(),
            misplaced: Vec::new(),
            draining: Vec::new(),
        };
        for (id, learned_mb) in &observed.learned_mb {
            if let Some(model) = desired.model(id) {
                survey.needs_mb[model] = survey.needs_mb[model].max(Some(*learned_mb));
            }
        }
        for node in &observed.nodes {
            survey.add_node(node);
        }
        survey
    }

    fn add_node(&mut self, node: &'a ObservedNode) {
        let at = self.nodes.len();
        let host = self.desired.host(&node.id, at);
        if let Some(host) = host {
            self.node_of_host[host] = Some(at);
        }
        let (first_device, first_replica) = (self.devices.len(), self.replicas.len());
        self.add_devices(node, host);
        let devices = first_device..self.devices.len();
        for model in &node.models {
            self.add_replica(at, node, host, model, devices.clone());
        }
        let replicas = first_replica..self.replicas.len();
        self.nodes.push(NodeView { observed: node, host, devices, replicas, generation: node.generation, touched: false, claimed: vec![] });
    }

    /// Of a declared host models may have what was declared and is there.
    fn add_devices(&mut self, node: &ObservedNode, host: Option<usize>) {
        let declared = host.map(|host| self.desired.host_placement(host));
        let reserved = declared.map_or(0, |host| host.reserved_mb);
        for (index, device) in node.devices.iter().enumerate() {
            let declared_mb = declared.and_then(|host| host.devices.get(index)).map_or(u64::MAX, |device| device.memory_mb);
            let memory_mb = device.memory_mb.min(declared_mb);
            let free_mb = memory_mb as i64 - reserved.max(device.foreign_mb) as i64;
            self.devices.push(DeviceView {
                memory_mb,
                compute_capability: device.compute_capability,
                free_mb,
                soon_mb: free_mb,
                loading: false,
                poisoned: device.poisoned,
            });
        }
    }

    fn add_replica(
        &mut self,
        node_at: usize,
        node: &ObservedNode,
        host: Option<usize>,
        observed: &'a ObservedModel,
        devices: Range<usize>,
    ) {
        let model = self.desired.model(&observed.id);
        let size_mb = model.and_then(|model| self.need_mb(model)).unwrap_or(0).max(observed.device_mb) as i64;
        let state = observed.state;
        for device in observed.devices.iter().map(|index| devices.start + index).filter(|at| *at < devices.end && state.occupies()) {
            let device = &mut self.devices[device];
            device.free_mb -= size_mb;
            device.soon_mb -= if state.is_leaving() { 0 } else { size_mb };
            device.loading |= state == ModelState::Loading;
        }
        let at = self.replicas.len();
        match state {
            ModelState::Loaded if !model.is_some_and(|model| self.desired.allows(model, host)) => self.misplaced.push(at),
            ModelState::Draining => self.draining.push(at),
            _ => {}
        }
        self.replicas.push(ReplicaView { observed, node: node_at, model, size_mb, leaving: state.is_leaving(), taken_back: false });
        let Some(model) = model.filter(|_| state.is_live()) else { return };
        let ready = node.reach == Reach::Ready;
        let kept = match node.reach {
            Reach::Ready | Reach::Defragging => true,
            Reach::Away { since } => self.now.ms_since(since) < self.desired.policy().away_ms_max,
        };
        self.serving[model] += usize::from(ready);
        self.kept[model] += usize::from(kept);
        self.loading[model] |= ready && state == ModelState::Loading;
        self.in_flight[model] += observed.in_flight;
    }

    /// MiB that one replica takes on each device; `None` when nobody knows yet.
    pub(super) fn need_mb(&self, model: usize) -> Option<u64> {
        self.needs_mb[model]
    }

    /// Declared models that somebody waits for.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (usize, ModelDemand)> {
        self.demand
            .models
            .iter()
            .filter(|(_, demand)| demand.waiting > 0)
            .filter_map(|(id, demand)| Some((self.desired.model(id)?, *demand)))
    }

    /// The memory of a replica counts as coming back.
    pub(super) fn leave(&mut self, at: usize) {
        let replica = &mut self.replicas[at];
        replica.leaving = true;
        let (node, size_mb, model) = (replica.node, replica.size_mb, replica.model);
        self.shift_soon(at, size_mb);
        self.nodes[node].touched = true;
        if let Some(model) = model {
            self.serving[model] -= 1;
            self.kept[model] -= 1;
        }
    }

    /// The devices of a replica, by their place in [`Survey::devices`].
    pub(super) fn devices_of(&self, replica: usize) -> impl Iterator<Item = usize> {
        let replica = &self.replicas[replica];
        let devices = self.nodes[replica.node].devices.clone();
        replica.observed.devices.iter().map(move |index| devices.start + index).filter(move |at| *at < devices.end)
    }

    pub(super) fn is_on(&self, replica: usize, device: usize) -> bool {
        self.devices_of(replica).any(|at| at == device)
    }

    /// Adds `mb` to what will soon be free on each device of a replica.
    pub(super) fn shift_soon(&mut self, replica: usize, mb: i64) {
        let ReplicaView { observed, node, .. } = self.replicas[replica];
        let devices = self.nodes[node].devices.clone();
        for at in observed.devices.iter().map(|index| devices.start + index).filter(|at| *at < devices.end) {
            self.devices[at].soon_mb += mb;
        }
    }

    /// Loaded on a ready node, and long enough.
    pub(super) fn may_go(&self, at: usize) -> bool {
        let replica = &self.replicas[at];
        let node = self.nodes[replica.node].observed;
        replica.observed.state == ModelState::Loaded
            && !replica.leaving
            && node.reach == Reach::Ready
            && self.now.ms_since(replica.observed.since) >= self.desired.policy().residency_ms(node.swaps_recent)
    }

    /// Whether the certificate puts a resident replica here.
    pub(super) fn is_home(&self, at: usize) -> bool {
        let replica = &self.replicas[at];
        let host = self.nodes[replica.node].host;
        replica.model.is_some_and(|model| self.desired.models[model].homes.iter().any(|home| Some(home.host) == host))
    }

    /// How long nobody has asked for the replica; 0 while somebody does.
    pub(super) fn unused_ms(&self, at: usize) -> u64 {
        let observed = self.replicas[at].observed;
        match observed.in_flight {
            0 => self.now.ms_since(observed.last_used.max(observed.since)),
            _ => 0,
        }
    }

    pub(super) fn is_past_idle_unload(&self, at: usize) -> bool {
        let Some(model) = self.replicas[at].model else { return false };
        let limit_ms = self.desired.terms[model].idle_unload_ms;
        limit_ms.is_some_and(|limit| self.unused_ms(at) >= limit) && !self.is_waited_for(model)
    }

    /// Not asked for in so long that its rank counts no more.
    pub(super) fn is_idle(&self, at: usize) -> bool {
        let Some(model) = self.replicas[at].model else { return true };
        let own_ms = self.desired.terms[model].idle_unload_ms.unwrap_or(u64::MAX);
        self.unused_ms(at) >= self.desired.policy().idle_ms.min(own_ms) && !self.is_waited_for(model)
    }

    fn is_waited_for(&self, model: usize) -> bool {
        !self.demand.models.is_empty() && self.demand.models.get(&self.desired.models[model].id).is_some_and(|demand| demand.waiting > 0)
    }
}
