//! A fleet of mixed hosts in groups of ten, each group with its own models: residents, and more on demand than fit at a time.

use std::collections::BTreeMap;

use cortex_core::{ModelId, ModelSpec, NodeId};

use crate::certificate::Certificate;
use crate::observed::{Observed, ObservedDevice, ObservedNode, Reach};
use crate::placement::{HostDevice, HostPlacement, Placement, Routing};
use crate::policy::Policy;
use crate::profile::{Footprint, FootprintOrigin, ModelProfile, Replicas, Requires, Residency, Spot};
use crate::prove::prove;

/// Hosts that share models.
const GROUP: usize = 10;

/// MiB of the devices of the hosts of a group, over and over.
const KINDS: [&[u64]; 5] = [&[32_000, 32_000], &[24_000], &[80_000], &[12_000], &[24_000, 24_000]];

/// Size, devices, residency, priority.
const MODELS: [(u64, usize, Residency, i32); 12] = [
    (9_000, 1, Residency::Pinned, 100),
    (20_000, 1, Residency::Resident, 300),
    (16_000, 1, Residency::Resident, 100),
    (30_000, 2, Residency::OnDemand, 200),
    (22_000, 1, Residency::OnDemand, 200),
    (22_000, 1, Residency::OnDemand, 200),
    (60_000, 1, Residency::OnDemand, 200),
    (50_000, 1, Residency::OnDemand, 200),
    (11_000, 1, Residency::OnDemand, 100),
    (11_000, 1, Residency::OnDemand, 100),
    (23_000, 2, Residency::OnDemand, 100),
    (6_000, 1, Residency::OnDemand, 100),
];

pub(super) struct Scenario {
    pub(super) placement: Placement,
    pub(super) policy: Policy,
    pub(super) observed: Observed,
    /// The models that are asked for.
    pub(super) demanded: Vec<ModelId>,
}

impl Scenario {
    /// `nodes` nodes, at least one group of them.
    ///
    /// # Errors
    /// A group has no proof.
    pub(super) fn new(nodes: usize) -> Result<Self, String> {
        let (mut hosts, mut models, mut observed) = (BTreeMap::new(), BTreeMap::new(), Observed::default());
        let mut certificate = Certificate::default();
        for group in 0..nodes.div_ceil(GROUP).max(1) {
            let (of_hosts, of_models) = (group_hosts(group), group_models(group));
            // Groups share nothing, so that their proofs can be put side by side.
            let proof = prove(&of_hosts, &of_models, false)
                .map_err(|problems| problems.first().map_or_else(String::new, |problem| format!("the scenario: {}", problem.message)))?;
            certificate.residents.extend(proof.residents);
            certificate.witnesses.extend(proof.witnesses);
            certificate.slack_mb.extend(proof.slack_mb);
            observed.nodes.extend(of_hosts.iter().map(|(name, host)| node(name, host)));
            hosts.extend(of_hosts);
            models.extend(of_models);
        }
        let demanded = models.keys().cloned().collect();
        let placement = Placement::new(hosts, models, Routing::default(), certificate);
        let policy = Policy { defrag_after_cycles: Some(20), ..Policy::default() };
        Ok(Self { placement, policy, observed, demanded })
    }
}

fn host_name(group: usize, at: usize) -> NodeId {
    format!("node-{:05}", group * GROUP + at).into()
}

fn group_hosts(group: usize) -> BTreeMap<NodeId, HostPlacement> {
    let device = |memory_mb: &u64| HostDevice { name: "card".into(), memory_mb: *memory_mb, compute_capability: None };
    let host = |at: usize| HostPlacement {
        endpoint: "http://node:13131".into(),
        devices: KINDS[at % KINDS.len()].iter().map(device).collect(),
        reserved_mb: 500,
        models: vec![],
        preload: vec![],
    };
    (0..GROUP).map(|at| (host_name(group, at), host(at))).collect()
}

fn group_models(group: usize) -> BTreeMap<ModelId, ModelProfile> {
    let spots = || (0..GROUP).map(|at| (host_name(group, at), Spot::default())).collect();
    let profile = |(at, (device_mb, devices, residency, priority)): (usize, (u64, usize, Residency, i32))| {
        let id = ModelId::from(format!("model-{group:04}-{at:02}"));
        let min = usize::from(residency != Residency::OnDemand) * 2;
        let profile = ModelProfile {
            spec: ModelSpec { tensor_parallel: Some(devices), ..ModelSpec::new(id.clone()) },
            capabilities: vec![],
            aliases: vec![],
            fallbacks: vec![],
            residency,
            replicas: Replicas { min, max: min.max(2) },
            priority,
            idle_unload_s: (at % 3 == 0).then_some(30),
            footprint: Some(Footprint { devices, device_mb, origin: FootprintOrigin::Declared }),
            requires: Requires::default(),
            placement: spots(),
        };
        (id, profile)
    };
    MODELS.into_iter().enumerate().map(profile).collect()
}

fn node(name: &NodeId, host: &HostPlacement) -> ObservedNode {
    let device = |device: &HostDevice| ObservedDevice { memory_mb: device.memory_mb, ..ObservedDevice::default() };
    let devices = host.devices.iter().map(device).collect();
    ObservedNode { id: name.clone(), reach: Reach::Ready, devices, models: vec![], generation: 0, cycles: 0, swaps_recent: 0 }
}
