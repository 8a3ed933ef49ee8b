//! Checks a certificate by adding up, knowing nothing of how it was found.

use std::collections::{BTreeMap, BTreeSet};

use cortex_core::{ModelId, NodeId};

use crate::certificate::{Assignment, Witness};
use crate::placement::Placement;
use crate::profile::{Mode, ModelProfile, Residency};

impl Placement {
    /// Whether the certificate proves what it should.
    ///
    /// # Errors
    /// The first thing that does not add up.
    pub fn verify(&self) -> Result<(), String> {
        let proof = &self.certificate;
        self.verify_fleet(None, &proof.residents, &proof.witnesses)?;
        if self.free(&proof.residents)? != proof.slack_mb {
            return Err("the slack is not what the residents leave".to_owned());
        }
        for gone in &proof.survives {
            self.verify_fleet(Some(&gone.without), &gone.residents, &gone.witnesses)
                .map_err(|flaw| format!("without {}: {flaw}", gone.without))?;
        }
        let covered: BTreeSet<&NodeId> = proof.survives.iter().map(|gone| &gone.without).collect();
        match covered.is_empty() || covered.iter().copied().eq(self.hosts.keys()) {
            true => Ok(()),
            false => Err("it says what is left without some hosts, and not without others".to_owned()),
        }
    }

    fn verify_fleet(&self, gone: Option<&NodeId>, residents: &[Assignment], witnesses: &[Witness]) -> Result<(), String> {
        let free = self.free(residents)?;
        for (id, model) in &self.models {
            let mine: Vec<&Assignment> = residents.iter().filter(|resident| resident.model == *id).collect();
            let hosts: BTreeSet<&NodeId> = mine.iter().map(|resident| &resident.host).filter(|host| Some(*host) != gone).collect();
            let modes = |mode: Mode| {
                self.hosts.keys().filter(move |host| Some(*host) != gone && model.spot(host).is_some_and(|spot| spot.mode == mode))
            };
            let left = modes(Mode::Auto).count() + modes(Mode::Preload).count();
            let min = if gone.is_some() { model.replicas.min.min(left.max(1)) } else { model.replicas.min };
            if hosts.len() != mine.len() || mine.len() != min {
                return Err(format!("`{id}` should be on {min} hosts"));
            }
            if min > 0 && gone.is_none() && !modes(Mode::Preload).all(|host| hosts.contains(host)) {
                return Err(format!("`{id}` is not on every host that should preload it"));
            }
            for resident in mine {
                self.verify_place(model, &resident.host, &resident.devices, true)?;
            }
            if min > 0 {
                continue;
            }
            let [witness] = witnesses.iter().filter(|witness| witness.model == *id).collect::<Vec<_>>()[..] else {
                return Err(format!("`{id}` should have one witness"));
            };
            if Some(&witness.host) == gone {
                return Err(format!("the witness of `{id}` is on a host that is gone"));
            }
            self.verify_place(model, &witness.host, &witness.devices, false)?;
            self.verify_room(model, witness, residents, &free)?;
        }
        Ok(())
    }

    /// The model may be there, on as many different devices as it takes, and they are good enough.
    fn verify_place(&self, model: &ModelProfile, host: &NodeId, devices: &[usize], resident: bool) -> Result<(), String> {
        let id = &model.spec.model_id;
        let spot = model.spot(host).filter(|spot| !(resident && spot.mode == Mode::OnDemand));
        let spot = spot.ok_or_else(|| format!("`{id}` may not be on {host}"))?;
        let have = &self.hosts.get(host).ok_or_else(|| format!("there is no host {host}"))?.devices;
        let distinct: BTreeSet<&usize> = devices.iter().collect();
        let good = |index: &usize| {
            let requires = &model.requires;
            have.get(*index).is_some_and(|device| {
                requires.device_memory_mb_min.is_none_or(|min| device.memory_mb >= min)
                    && requires.compute_capability_min.is_none_or(|min| device.compute_capability.is_some_and(|has| has >= min))
            }) && spot.devices.as_ref().is_none_or(|only| only.contains(index))
        };
        let enough = model.requires.devices_min.is_none_or(|min| have.len() >= min);
        match enough && distinct.len() == devices.len() && devices.len() == model.tensor_parallel() && devices.iter().all(good) {
            true => Ok(()),
            false => Err(format!("`{id}` cannot be on devices {devices:?} of {host}")),
        }
    }

    /// The displaced are there, yield, and leave enough.
    fn verify_room(
        &self,
        model: &ModelProfile,
        witness: &Witness,
        residents: &[Assignment],
        free: &BTreeMap<NodeId, Vec<u64>>,
    ) -> Result<(), String> {
        let mut room = free[&witness.host].clone();
        for displaced in &witness.displaces {
            let place = residents.iter().find(|resident| resident.model == *displaced && resident.host == witness.host);
            let other = &self.models.get(displaced).ok_or_else(|| format!("there is no `{displaced}` to displace"))?;
            let place = place.ok_or_else(|| format!("`{displaced}` is not on {}", witness.host))?;
            if other.residency == Residency::Pinned || other.priority >= model.priority {
                return Err(format!("`{displaced}` does not yield to `{}`", witness.model));
            }
            place.devices.iter().for_each(|index| room[*index] += needed_mb(other));
        }
        match witness.devices.iter().all(|index| room[*index] >= needed_mb(model)) {
            true => Ok(()),
            false => Err(format!("`{}` does not fit on {} that way", witness.model, witness.host)),
        }
    }

    /// What the residents leave of each device.
    fn free(&self, residents: &[Assignment]) -> Result<BTreeMap<NodeId, Vec<u64>>, String> {
        let usable = |host: &crate::placement::HostPlacement| (0..host.devices.len()).filter_map(|index| host.usable_mb(index)).collect();
        let mut free: BTreeMap<NodeId, Vec<u64>> = self.hosts.iter().map(|(name, host)| (name.clone(), usable(host))).collect();
        for resident in residents {
            let need = needed_mb(self.models.get(&resident.model).ok_or_else(|| unknown(&resident.model))?);
            let devices = free.get_mut(&resident.host).ok_or_else(|| format!("there is no host {}", resident.host))?;
            for index in &resident.devices {
                let left = devices.get(*index).and_then(|left| left.checked_sub(need));
                devices[*index] = left.ok_or_else(|| format!("{}:{index} is over-committed", resident.host))?;
            }
        }
        Ok(free)
    }
}

fn needed_mb(model: &ModelProfile) -> u64 {
    model.footprint.map_or(0, |footprint| footprint.device_mb)
}

fn unknown(model: &ModelId) -> String {
    format!("there is no model `{model}`")
}
