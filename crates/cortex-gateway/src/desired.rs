//! What the fleet should come to, for the one decider: the declared models, and those that nodes merely have.

use std::collections::BTreeMap;
use std::sync::Arc;

use cortex_core::config::{EvictionStrategy, GatewayConfig, ModelTerms, Residency};
use cortex_core::{ModelId, ModelSpec, NodeId};
use cortex_placement::{
    Certificate, Desired, Eviction, Footprint, FootprintOrigin, HostPlacement, ModelProfile, Placement, Policy, Replicas, Requires,
    Residency as Stays, Routing, Spot,
};

use crate::fleet::{Fleet, Standing};
use crate::setup::Setup;

/// What is desired, indexed anew only when it changes. Without a placement that is at every look: what is wanted depends on what nodes
/// have.
#[derive(Debug, Default)]
pub(crate) struct Memo(Option<Indexed>);

#[derive(Debug)]
struct Indexed {
    setup: Arc<Setup>,
    nodes: Vec<NodeId>,
    desired: Arc<Desired>,
}

impl Memo {
    pub(crate) fn desired(&mut self, setup: Arc<Setup>, fleet: &Fleet) -> Arc<Desired> {
        let same = |known: &Indexed| {
            let nodes = fleet.nodes().iter().map(|node| &node.id);
            known.setup.placement.is_some() && Arc::ptr_eq(&known.setup, &setup) && nodes.eq(&known.nodes)
        };
        if let Some(known) = self.0.as_ref().filter(|known| same(known)) {
            return Arc::clone(&known.desired);
        }
        let desired = Arc::new(desired(&setup, fleet));
        let nodes = fleet.nodes().iter().map(|node| node.id.clone()).collect();
        self.0 = Some(Indexed { setup, nodes, desired: Arc::clone(&desired) });
        desired
    }
}

/// From what the gateway was told, and what nodes report. A placement is the whole truth: what it does not name leaves.
fn desired(setup: &Setup, fleet: &Fleet) -> Desired {
    let config = &setup.config;
    let (mut placement, policy) = match &setup.placement {
        Some(placement) => (Placement::clone(placement), Policy { unload_undeclared: true, ..policy(config) }),
        None => (configured(config, fleet), policy(config)),
    };
    let host = |endpoint: String| HostPlacement { endpoint, devices: vec![], reserved_mb: 0, models: vec![], preload: vec![] };
    for node in fleet.nodes() {
        placement.hosts.entry(node.id.clone()).or_insert_with(|| host(node.endpoint.to_string()));
    }
    Desired::new(placement, policy)
}

/// What `[[models]]` say, and what nodes have besides.
fn configured(config: &GatewayConfig, fleet: &Fleet) -> Placement {
    let declared = config.placement.models().map(|placed| {
        let model = &placed.spec.model_id;
        let terms = config.terms.get(model).cloned().unwrap_or_default();
        (model.clone(), profile(placed.spec.clone(), &placed.nodes, &terms, live(fleet, model)))
    });
    let mut models: BTreeMap<ModelId, ModelProfile> = declared.collect();
    for model in fleet.models().filter(|model| !config.placement.is_declared(model)) {
        let nodes: Vec<NodeId> = fleet.replicas(model.as_str()).map(|(node, _)| node.id.clone()).collect();
        models.insert(model.clone(), profile(ModelSpec::new(model.clone()), &nodes, &ModelTerms::default(), live(fleet, model)));
    }
    Placement::new(BTreeMap::new(), models, Routing::default(), Certificate::default())
}

/// How the decider weighs.
pub(crate) fn policy(config: &GatewayConfig) -> Policy {
    let section = &config.eviction;
    let ms = |millis: cortex_core::config::Millis| u64::try_from(millis.duration().as_millis()).unwrap_or(u64::MAX);
    Policy {
        eviction: match section.strategy {
            EvictionStrategy::Lru => Eviction::Lru,
            EvictionStrategy::Priority => Eviction::Priority,
        },
        residency_ms_min: ms(section.residency_ms_min),
        idle_ms: ms(section.idle_ms),
        load_retry_ms: ms(config.timeouts.load_failure_ms),
        defrag_after_cycles: (section.defrag_after_cycles > 0).then_some(section.defrag_after_cycles),
        ..Policy::default()
    }
}

/// Nodes that hold the model or are about to.
fn live(fleet: &Fleet, model: &ModelId) -> usize {
    fleet.replicas(model.as_str()).filter(|(_, replica)| replica.standing <= Standing::Loading).count()
}

/// Where the operator names no bound, as many replicas as there are may stay, and none is added.
fn profile(spec: ModelSpec, nodes: &[NodeId], terms: &ModelTerms, live: usize) -> ModelProfile {
    let stays = terms.residency != Residency::OnDemand;
    let min = terms.replicas_min.unwrap_or(usize::from(stays));
    let devices = spec.tensor_parallel.unwrap_or(1).max(1);
    ModelProfile {
        capabilities: vec![],
        aliases: vec![],
        fallbacks: vec![],
        residency: match terms.residency {
            Residency::Pinned => Stays::Pinned,
            Residency::Resident => Stays::Resident,
            Residency::OnDemand => Stays::OnDemand,
        },
        replicas: Replicas { min, max: terms.replicas_max.unwrap_or(live).max(min).max(1) },
        priority: terms.priority,
        idle_unload_s: terms.idle_unload_s,
        footprint: terms.vram_mb.map(|device_mb| Footprint { devices, device_mb, origin: FootprintOrigin::Declared }),
        requires: Requires::default(),
        placement: nodes.iter().map(|node| (node.clone(), Spot { devices: spec.devices.clone(), ..Spot::default() })).collect(),
        spec,
    }
}
