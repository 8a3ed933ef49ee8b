//! Whether everything has a place: a packing of what is held always, and for each model on demand a way in.

mod conflict;
mod pack;
mod witness;

use std::collections::BTreeMap;

use cortex_core::{ModelId, NodeId};

use crate::certificate::{Assignment, Certificate, Survival, Witness};
use crate::placement::HostPlacement;
use crate::problem::Problem;
use crate::profile::{Mode, ModelProfile};
use crate::words::gib;
use pack::{Item, Outcome, Place};

/// Hosts by name.
pub(crate) type Hosts = BTreeMap<NodeId, HostPlacement>;
/// Models by id.
pub(crate) type Models = BTreeMap<ModelId, ModelProfile>;

/// Looks for a certificate.
///
/// # Errors
/// The smallest conflicting sets, and models on demand that have no way in.
pub fn prove(hosts: &Hosts, models: &Models, survive_one: bool) -> Result<Certificate, Vec<Problem>> {
    let fleet = Fleet::new(hosts, models, None);
    let Solution { residents, witnesses } = fleet.solve()?;
    let slack_mb = hosts.keys().cloned().zip(fleet.slack(&residents)).collect();
    let survives = if survive_one { survive(hosts, models)? } else { Vec::new() };
    Ok(Certificate { residents: fleet.name(&residents), witnesses, slack_mb, survives })
}

/// The fleet without each host in turn.
fn survive(hosts: &Hosts, models: &Models) -> Result<Vec<Survival>, Vec<Problem>> {
    let mut survivals = Vec::new();
    let mut problems: Vec<Problem> = Vec::new();
    for without in hosts.keys() {
        let fleet = Fleet::new(hosts, models, Some(without));
        match fleet.solve() {
            Ok(Solution { residents, witnesses }) => {
                survivals.push(Survival { without: without.clone(), residents: fleet.name(&residents), witnesses });
            }
            Err(found) => problems.extend(
                found.into_iter().map(|problem| Problem { message: format!("without `{without}`: {}", problem.message), ..problem }),
            ),
        }
    }
    if problems.is_empty() { Ok(survivals) } else { Err(problems) }
}

/// What is packed, with hosts as numbers. A host that is gone has no devices.
pub(crate) struct Fleet<'a> {
    hosts: Vec<(&'a NodeId, &'a HostPlacement)>,
    models: &'a Models,
    gone: Option<&'a NodeId>,
    /// By host and device: MiB that models may have.
    free: Vec<Vec<u64>>,
}

struct Solution {
    residents: Vec<(ModelId, Place)>,
    witnesses: Vec<Witness>,
}

impl<'a> Fleet<'a> {
    pub(crate) fn new(hosts: &'a Hosts, models: &'a Models, gone: Option<&'a NodeId>) -> Self {
        let usable = |(name, host): (&NodeId, &HostPlacement)| {
            let devices = if Some(name) == gone { 0 } else { host.devices.len() };
            (0..devices).filter_map(|index| host.usable_mb(index)).collect()
        };
        Self { hosts: hosts.iter().collect(), models, gone, free: hosts.iter().map(usable).collect() }
    }

    fn solve(&self) -> Result<Solution, Vec<Problem>> {
        let items = self.items(self.models.keys());
        let mut lacking: Option<Vec<ModelId>> = None;
        let outcome = pack::pack(&items, &self.free, |places| {
            let residents = with_models(&items, places);
            let without: Vec<ModelId> = self.on_demand().filter(|model| self.witness(model, &residents).is_none()).cloned().collect();
            let complete = without.is_empty();
            if lacking.as_ref().is_none_or(|best| without.len() < best.len()) {
                lacking = Some(without);
            }
            complete
        });
        match (outcome, lacking) {
            (Outcome::Packed(places), _) => {
                let residents = with_models(&items, &places);
                let witnesses = self.on_demand().filter_map(|model| self.witness(model, &residents)).collect();
                Ok(Solution { residents, witnesses })
            }
            (_, Some(lacking)) => Err(lacking.iter().map(|model| self.no_way_in(model)).collect()),
            (Outcome::Impossible, None) => Err(vec![self.conflict(&items)]),
            (Outcome::Undecided, None) => Err(vec![self.undecided(&items)]),
        }
    }

    /// The replicas that are held always. With a host gone, a model keeps as many as hosts are left, but at least one.
    fn items<'m>(&self, models: impl Iterator<Item = &'m ModelId>) -> Vec<Item> {
        let mut items = Vec::new();
        for id in models {
            let profile = &self.models[id];
            if profile.replicas.min == 0 {
                continue;
            }
            let spots = |want: fn(Mode) -> bool| -> Vec<(usize, Vec<usize>)> {
                let allowed = (0..self.hosts.len()).filter(|host| profile.spot(self.hosts[*host].0).is_some_and(|spot| want(spot.mode)));
                allowed.filter(|host| Some(self.hosts[*host].0) != self.gone).map(|host| (host, self.eligible(profile, host))).collect()
            };
            let (preload, auto) = (spots(|mode| mode == Mode::Preload), spots(|mode| mode == Mode::Auto));
            let count = match self.gone {
                None => profile.replicas.min,
                Some(_) => profile.replicas.min.min(preload.len() + auto.len()).max(1),
            };
            let item = |options| Item { model: id.clone(), options, devices: profile.tensor_parallel(), device_mb: device_mb(profile) };
            let fixed = preload.into_iter().map(|spot| item(vec![spot]));
            let before = items.len();
            items.extend(fixed.take(count));
            let missing = count - (items.len() - before);
            items.extend((0..missing).map(|_| item(auto.clone())));
        }
        items
    }

    /// Models that are loaded when asked for.
    fn on_demand(&self) -> impl Iterator<Item = &'a ModelId> {
        self.models.iter().filter(|(_, profile)| profile.replicas.min == 0).map(|(id, _)| id)
    }

    /// The devices of `host` that meet what the model requires, whatever is on them.
    pub(crate) fn eligible(&self, profile: &ModelProfile, host: usize) -> Vec<usize> {
        let (name, placed) = self.hosts[host];
        let only = profile.spot(name).and_then(|spot| spot.devices);
        if profile.requires.devices_min.is_some_and(|min| placed.devices.len() < min) {
            return Vec::new();
        }
        let meets = |index: &usize| {
            let device = &placed.devices[*index];
            let capable = profile.requires.compute_capability_min.is_none_or(|min| device.compute_capability >= Some(min));
            let large = profile.requires.device_memory_mb_min.is_none_or(|min| device.memory_mb >= min);
            capable && large && only.as_ref().is_none_or(|only| only.contains(index))
        };
        (0..self.free[host].len()).filter(meets).collect()
    }

    /// Whether the model fits on `host` while nothing else is there.
    pub(crate) fn fits_alone(&self, profile: &ModelProfile, host: usize) -> bool {
        let fit = self.eligible(profile, host).into_iter().filter(|index| self.free[host][*index] >= device_mb(profile));
        fit.count() >= profile.tensor_parallel()
    }

    fn slack(&self, residents: &[(ModelId, Place)]) -> Vec<Vec<u64>> {
        let mut free = self.free.clone();
        for (model, place) in residents {
            for index in &place.devices {
                free[place.host][*index] -= device_mb(&self.models[model]);
            }
        }
        free
    }

    fn name(&self, residents: &[(ModelId, Place)]) -> Vec<Assignment> {
        let assignment = |(model, place): &(ModelId, Place)| Assignment {
            model: model.clone(),
            host: self.hosts[place.host].0.clone(),
            devices: place.devices.clone(),
        };
        let mut assignments: Vec<Assignment> = residents.iter().map(assignment).collect();
        assignments.sort();
        assignments
    }

    /// `beast:0 (RTX 5090) has 31.8 GiB, less 1.0 GiB reserved`, for each device of `host`.
    pub(crate) fn devices_in_words(&self, host: usize) -> Vec<String> {
        let (name, placed) = self.hosts[host];
        let reserved = if placed.reserved_mb == 0 { String::new() } else { format!(", less {} reserved", gib(placed.reserved_mb)) };
        let device = |(index, device): (usize, &crate::placement::HostDevice)| {
            format!("{name}:{index} ({}) has {}{reserved}", device.name, gib(device.memory_mb))
        };
        placed.devices.iter().enumerate().map(device).collect()
    }
}

/// MiB on each device; a model of unknown size is taken to fit.
pub(crate) fn device_mb(profile: &ModelProfile) -> u64 {
    profile.footprint.map_or(0, |footprint| footprint.device_mb)
}

fn with_models(items: &[Item], places: &[Place]) -> Vec<(ModelId, Place)> {
    items.iter().map(|item| item.model.clone()).zip(places.iter().cloned()).collect()
}
