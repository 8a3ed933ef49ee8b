//! Small fleets for tests. The only helper that knows how the types are put together.

use std::collections::BTreeMap;

use cortex_core::{ModelId, ModelSpec, NodeId};
use cortex_placement::{
    Assignment, Certificate, Desired, Footprint, FootprintOrigin, HostDevice, HostPlacement, Mode, ModelProfile, ModelState, Moment,
    Observed, ObservedDevice, ObservedModel, ObservedNode, Placement, Policy, Reach, Replicas, Requires, Residency, Routing, Spot, Witness,
};

/// Seconds, for moments.
pub(crate) const S: u64 = 1000;

/// A model of `device_mb` on one device, on demand, anywhere.
pub(crate) fn model(id: &str, device_mb: u64) -> Model {
    let profile = ModelProfile {
        spec: ModelSpec::new(id),
        capabilities: vec![],
        aliases: vec![],
        fallbacks: vec![],
        residency: Residency::OnDemand,
        replicas: Replicas { min: 0, max: 1 },
        priority: 100,
        idle_unload_s: None,
        footprint: Some(Footprint { devices: 1, device_mb, origin: FootprintOrigin::Declared }),
        requires: Requires::default(),
        placement: BTreeMap::new(),
    };
    Model { profile, homes: vec![], witness: None }
}

#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) profile: ModelProfile,
    homes: Vec<(NodeId, Vec<usize>)>,
    witness: Option<(NodeId, Vec<usize>)>,
}

impl Model {
    /// Held always, with a proven place.
    pub(crate) fn home(mut self, host: &str, devices: &[usize]) -> Self {
        self.profile.residency = Residency::Resident;
        self.homes.push((host.into(), devices.to_vec()));
        self.profile.replicas.min = self.homes.len();
        self.profile.replicas.max = self.profile.replicas.max.max(self.homes.len());
        self
    }

    /// On demand, with a proven way in.
    pub(crate) fn witness(mut self, host: &str, devices: &[usize]) -> Self {
        self.witness = Some((host.into(), devices.to_vec()));
        self
    }

    pub(crate) fn pinned(mut self) -> Self {
        self.profile.residency = Residency::Pinned;
        self
    }

    pub(crate) fn priority(mut self, priority: i32) -> Self {
        self.profile.priority = priority;
        self
    }

    pub(crate) fn replicas_max(mut self, max: usize) -> Self {
        self.profile.replicas.max = max;
        self
    }

    pub(crate) fn parallel(mut self, parallel: usize) -> Self {
        self.profile.spec.parallel = Some(parallel);
        self
    }

    pub(crate) fn idle_unload(mut self, seconds: u64) -> Self {
        self.profile.idle_unload_s = Some(seconds);
        self
    }

    pub(crate) fn tensor_parallel(mut self, devices: usize) -> Self {
        self.profile.spec.tensor_parallel = Some(devices);
        if let Some(footprint) = &mut self.profile.footprint {
            footprint.devices = devices;
        }
        self
    }

    pub(crate) fn on(mut self, hosts: &[&str]) -> Self {
        self.profile.placement = hosts.iter().map(|host| (NodeId::from(*host), Spot::default())).collect();
        self
    }

    pub(crate) fn mode(mut self, host: &str, mode: Mode) -> Self {
        self.profile.placement.insert(host.into(), Spot { mode, devices: None });
        self
    }
}

/// Hosts with their devices' MiB, nothing reserved.
pub(crate) fn placement(hosts: &[(&str, &[u64])], models: &[Model]) -> Placement {
    let device = |memory_mb: &u64| HostDevice { name: "card".into(), memory_mb: *memory_mb, compute_capability: None };
    let host = |devices: &[u64]| HostPlacement {
        endpoint: "http://host:13131".into(),
        devices: devices.iter().map(device).collect(),
        reserved_mb: 0,
        models: vec![],
        preload: vec![],
    };
    let hosts = hosts.iter().map(|(name, devices)| (NodeId::from(*name), host(devices))).collect();
    let id = |model: &Model| model.profile.spec.model_id.clone();
    let assignment = |model: &Model, (host, devices): &(NodeId, Vec<usize>)| Assignment {
        model: id(model),
        host: host.clone(),
        devices: devices.clone(),
    };
    let residents = models.iter().flat_map(|model| model.homes.iter().map(|home| assignment(model, home))).collect();
    let witness = |model: &Model| {
        let (host, devices) = model.witness.clone()?;
        Some(Witness { model: id(model), host, devices, displaces: vec![] })
    };
    let witnesses = models.iter().filter_map(witness).collect();
    let models = models.iter().map(|model| (id(model), model.profile.clone())).collect();
    Placement::new(hosts, models, Routing::default(), Certificate { residents, witnesses, ..Certificate::default() })
}

/// The same under the default policy.
pub(crate) fn desired(hosts: &[(&str, &[u64])], models: &[Model]) -> Desired {
    Desired::new(placement(hosts, models), Policy::default())
}

/// A ready node with nothing in memory.
pub(crate) fn node(id: &str, devices: &[u64]) -> ObservedNode {
    let device = |memory_mb: &u64| ObservedDevice { memory_mb: *memory_mb, ..ObservedDevice::default() };
    ObservedNode {
        id: id.into(),
        reach: Reach::Ready,
        devices: devices.iter().map(device).collect(),
        models: vec![],
        generation: 7,
        cycles: 0,
        swaps_recent: 0,
    }
}

/// A model in memory since the beginning, unused since.
pub(crate) fn loaded(id: &str, devices: &[usize]) -> ObservedModel {
    ObservedModel {
        id: ModelId::from(id),
        state: ModelState::Loaded,
        since: Moment(0),
        devices: devices.to_vec(),
        device_mb: 0,
        in_flight: 0,
        last_used: Moment(0),
    }
}

pub(crate) fn holding(mut node: ObservedNode, models: Vec<ObservedModel>) -> ObservedNode {
    node.models = models;
    node
}

pub(crate) fn observed(nodes: Vec<ObservedNode>) -> Observed {
    Observed { nodes, learned_mb: BTreeMap::new() }
}
