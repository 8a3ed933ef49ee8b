//! Certificates: what the packer finds the checker accepts, what is changed it refuses, and brute force finds no more than the packer.

use std::collections::BTreeMap;

use cortex_core::{ModelId, NodeId};
use cortex_placement::{Assignment, Certificate, HostPlacement, Mode, ModelProfile, Placement, Residency, Witness, prove};
use proptest::prelude::*;

use crate::fleet::{Model, model, placement};

const HOSTS: [(&str, &[u64]); 3] = [("x", &[10, 10]), ("y", &[7]), ("z", &[8, 5])];

fn any_model(id: &'static str) -> impl Strategy<Value = Model> {
    let residency = prop_oneof![2 => Just(Residency::Resident), 1 => Just(Residency::Pinned), 1 => Just(Residency::OnDemand)];
    let modes = prop::collection::vec(
        prop_oneof![3 => Just(None), 4 => Just(Some(Mode::Auto)), 1 => Just(Some(Mode::Preload)), 1 => Just(Some(Mode::OnDemand))],
        HOSTS.len(),
    );
    (2..10u64, 1..3usize, 1..3usize, 0..3i32, residency, modes).prop_map(move |(size, devices, replicas, priority, residency, modes)| {
        let mut built = model(id, size).priority(priority);
        if devices == 2 {
            built = built.tensor_parallel(2);
        }
        let mut preloads = 0;
        for ((host, _), mode) in HOSTS.iter().zip(modes) {
            if let Some(mode) = mode {
                built = built.mode(host, mode);
                preloads += usize::from(mode == Mode::Preload);
            }
        }
        built.profile.residency = residency;
        built.profile.replicas.min = if residency == Residency::OnDemand { 0 } else { replicas.max(preloads) };
        built
    })
}

fn any_fleet() -> impl Strategy<Value = Placement> {
    let ids = ["a", "b", "c"].map(any_model);
    (ids, 1..=3usize).prop_map(|(models, count)| placement(&HOSTS, &models[..count]))
}

fn with(fleet: &Placement, certificate: Certificate) -> Placement {
    Placement::new(fleet.hosts.clone(), fleet.models.clone(), fleet.routing.clone(), certificate)
}

/// Every choice of a host and devices for one replica of `model`.
fn every_place(fleet: &Placement, model: &ModelProfile, resident: bool) -> Vec<(NodeId, Vec<usize>)> {
    let mut places = Vec::new();
    for (name, host) in &fleet.hosts {
        let Some(spot) = model.spot(name) else { continue };
        if resident && spot.mode == Mode::OnDemand {
            continue;
        }
        for set in 1_u32..1 << host.devices.len() {
            let devices: Vec<usize> = (0..host.devices.len()).filter(|index| set & (1 << index) != 0).collect();
            if devices.len() == model.tensor_parallel() {
                places.push((name.clone(), devices));
            }
        }
    }
    places
}

/// Tries every assignment of every replica, and for each every witness, and believes only the checker.
fn brute_force(fleet: &Placement) -> bool {
    let wanted: Vec<&ModelId> = fleet.models.iter().flat_map(|(id, profile)| std::iter::repeat_n(id, profile.replicas.min)).collect();
    place_rest(fleet, &wanted, &mut Vec::new())
}

fn place_rest(fleet: &Placement, wanted: &[&ModelId], residents: &mut Vec<Assignment>) -> bool {
    let Some((id, rest)) = wanted.split_first() else { return has_witnesses(fleet, residents) };
    for (host, devices) in every_place(fleet, &fleet.models[*id], true) {
        if residents.iter().any(|resident| resident.model == **id && resident.host == host) {
            continue;
        }
        residents.push(Assignment { model: (*id).clone(), host, devices });
        let found = within(fleet, residents) && place_rest(fleet, rest, residents);
        residents.pop();
        if found {
            return true;
        }
    }
    false
}

fn within(fleet: &Placement, residents: &[Assignment]) -> bool {
    slack(fleet, residents).is_some()
}

fn slack(fleet: &Placement, residents: &[Assignment]) -> Option<BTreeMap<NodeId, Vec<u64>>> {
    let usable = |host: &HostPlacement| host.devices.iter().map(|device| device.memory_mb).collect();
    let mut free: BTreeMap<NodeId, Vec<u64>> = fleet.hosts.iter().map(|(name, host)| (name.clone(), usable(host))).collect();
    for resident in residents {
        let need = fleet.models[&resident.model].footprint?.device_mb;
        for index in &resident.devices {
            let left = &mut free.get_mut(&resident.host)?[*index];
            *left = left.checked_sub(need)?;
        }
    }
    Some(free)
}

fn has_witnesses(fleet: &Placement, residents: &[Assignment]) -> bool {
    let Some(slack_mb) = slack(fleet, residents) else { return false };
    let mut witnesses = Vec::new();
    for (id, profile) in fleet.models.iter().filter(|(_, profile)| profile.replicas.min == 0) {
        let mut found = None;
        for (host, devices) in every_place(fleet, profile, false) {
            let here: Vec<&ModelId> = residents.iter().filter(|resident| resident.host == host).map(|resident| &resident.model).collect();
            for set in 0_u32..1 << here.len() {
                let displaces = here.iter().enumerate().filter(|(at, _)| set & (1 << at) != 0).map(|(_, id)| (*id).clone()).collect();
                let witness = Witness { model: id.clone(), host: host.clone(), devices: devices.clone(), displaces };
                let alone = Placement::new(
                    fleet.hosts.clone(),
                    fleet
                        .models
                        .iter()
                        .filter(|(other, _)| *other == id || fleet.models[*other].replicas.min > 0)
                        .map(|(id, profile)| (id.clone(), profile.clone()))
                        .collect(),
                    fleet.routing.clone(),
                    Certificate {
                        residents: residents.to_vec(),
                        witnesses: vec![witness.clone()],
                        slack_mb: slack_mb.clone(),
                        survives: vec![],
                    },
                );
                if alone.verify().is_ok() {
                    found = Some(witness);
                }
            }
        }
        match found {
            Some(witness) => witnesses.push(witness),
            None => return false,
        }
    }
    with(fleet, Certificate { residents: residents.to_vec(), witnesses, slack_mb, survives: vec![] }).verify().is_ok()
}

/// Certificates that differ from `proof` in one place.
fn mutations(proof: &Certificate) -> Vec<Certificate> {
    let mut all = Vec::new();
    let mut change = |changed: &dyn Fn(&mut Certificate)| {
        let mut copy = proof.clone();
        changed(&mut copy);
        all.push(copy);
    };
    for at in 0..proof.residents.len() {
        change(&|copy| drop(copy.residents.remove(at)));
        change(&|copy| copy.residents.push(copy.residents[at].clone()));
        change(&|copy| copy.residents[at].devices.push(0));
        change(&|copy| copy.residents[at].devices[0] += 7);
        change(&|copy| copy.residents[at].host = "nowhere".into());
        change(&|copy| copy.residents[at].model = "nothing".into());
    }
    for at in 0..proof.witnesses.len() {
        change(&|copy| drop(copy.witnesses.remove(at)));
        change(&|copy| copy.witnesses[at].devices.clear());
        change(&|copy| copy.witnesses[at].displaces.push("nothing".into()));
    }
    for (host, devices) in &proof.slack_mb {
        for index in 0..devices.len() {
            change(&|copy| copy.slack_mb.entry(host.clone()).or_default()[index] += 1);
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_packer_finds_what_brute_force_finds_and_no_more(fleet in any_fleet()) {
        let found = prove(&fleet.hosts, &fleet.models, false);
        prop_assert_eq!(found.is_ok(), brute_force(&fleet), "{:?}", found);
        if let Ok(proof) = found {
            prop_assert_eq!(with(&fleet, proof.clone()).verify(), Ok(()));
            for mutated in mutations(&proof) {
                prop_assert!(with(&fleet, mutated.clone()).verify().is_err(), "{:?} became {:?}", &proof, mutated);
            }
        }
    }

    #[test]
    fn what_survives_the_loss_of_a_host_is_proven_too(fleet in any_fleet()) {
        if let Ok(proof) = prove(&fleet.hosts, &fleet.models, true) {
            prop_assert_eq!(proof.survives.len(), HOSTS.len());
            prop_assert_eq!(with(&fleet, proof.clone()).verify(), Ok(()));
            let mut partial = proof;
            partial.survives.pop();
            prop_assert!(with(&fleet, partial).verify().is_err());
        }
    }
}

#[test]
fn many_models_on_many_hosts_are_packed_and_the_packing_is_right() {
    let names: Vec<String> = (0..50).map(|at| format!("host-{at:02}")).collect();
    let hosts: Vec<(&str, &[u64])> = names.iter().map(|name| (name.as_str(), &[80_000, 80_000, 80_000, 80_000][..])).collect();
    let ids: Vec<String> = (0..1000).map(|at| format!("model-{at:04}")).collect();
    let models: Vec<Model> = ids
        .iter()
        .enumerate()
        .map(|(at, id)| {
            let mut built = model(id, 4_000 + (at as u64 * 7_919) % 30_000).priority((at % 7) as i32);
            if at % 3 == 0 {
                built.profile.residency = Residency::Resident;
                built.profile.replicas.min = 1;
            }
            built
        })
        .collect();
    let fleet = placement(&hosts, &models);
    let proof = prove(&fleet.hosts, &fleet.models, false).unwrap();
    assert_eq!(proof.residents.len(), 334);
    assert_eq!(proof.witnesses.len(), 666);
    assert_eq!(with(&fleet, proof).verify(), Ok(()));
}
