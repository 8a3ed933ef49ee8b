//! A way in for a model on demand: a place, and the residents of lower priority that must make room.

use cortex_core::ModelId;

use super::pack::Place;
use super::{Fleet, device_mb};
use crate::certificate::Witness;
use crate::problem::Problem;
use crate::profile::{ModelProfile, Residency};
use crate::words::gib;

/// Residents of one host of which every subset is tried; of more, the smaller ones are left alone.
const DISPLACED_MAX: usize = 12;

impl Fleet<'_> {
    /// The way in that displaces the fewest.
    pub(super) fn witness(&self, model: &ModelId, residents: &[(ModelId, Place)]) -> Option<Witness> {
        let profile = &self.models[model];
        let mut best: Option<Witness> = None;
        for host in (0..self.hosts.len()).filter(|host| profile.spot(self.hosts[*host].0).is_some()) {
            let fewer = best.as_ref().map_or(usize::MAX, |witness| witness.displaces.len());
            if let Some(found) = self.way_in(model, profile, host, residents, fewer) {
                let done = found.displaces.is_empty();
                best = Some(found);
                if done {
                    break;
                }
            }
        }
        best
    }

    /// A way in on `host` that displaces fewer than `fewer`.
    fn way_in(
        &self,
        model: &ModelId,
        profile: &ModelProfile,
        host: usize,
        residents: &[(ModelId, Place)],
        fewer: usize,
    ) -> Option<Witness> {
        let here = move || residents.iter().filter(move |(_, place)| place.host == host);
        let mut free = self.free[host].clone();
        for (resident, place) in here() {
            place.devices.iter().for_each(|index| free[*index] -= device_mb(&self.models[resident]));
        }
        let yields = |resident: &ModelProfile| resident.residency != Residency::Pinned && resident.priority < profile.priority;
        let mut displaceable: Vec<&(ModelId, Place)> = here().filter(|(resident, _)| yields(&self.models[resident])).collect();
        displaceable.sort_by_key(|(resident, _)| std::cmp::Reverse(device_mb(&self.models[resident])));
        displaceable.truncate(DISPLACED_MAX);
        let eligible = self.eligible(profile, host);
        let mut subsets: Vec<u32> = (0..1_u32 << displaceable.len()).filter(|set| (set.count_ones() as usize) < fewer).collect();
        subsets.sort_by_key(|set| (set.count_ones(), *set));
        for set in subsets {
            let leaving: Vec<&(ModelId, Place)> =
                displaceable.iter().enumerate().filter(|(at, _)| set & (1 << at) != 0).map(|(_, resident)| *resident).collect();
            let mut room = free.clone();
            for (resident, place) in &leaving {
                place.devices.iter().for_each(|index| room[*index] += device_mb(&self.models[resident]));
            }
            let mut fit: Vec<usize> = eligible.iter().copied().filter(|index| room[*index] >= device_mb(profile)).collect();
            if fit.len() >= profile.tensor_parallel() {
                fit.sort_by_key(|index| (room[*index], *index));
                fit.truncate(profile.tensor_parallel());
                fit.sort_unstable();
                let mut displaces: Vec<ModelId> = leaving.into_iter().map(|(resident, _)| resident.clone()).collect();
                displaces.sort();
                return Some(Witness { model: model.clone(), host: self.hosts[host].0.clone(), devices: fit, displaces });
            }
        }
        None
    }

    /// Says why there is none.
    pub(super) fn no_way_in(&self, model: &ModelId) -> Problem {
        let profile = &self.models[model];
        let need = gib(device_mb(profile));
        let devices = profile.tensor_parallel();
        let room = if devices == 1 { format!("{need} on one device") } else { format!("{need} on each of {devices} devices") };
        let mut problem = Problem::at(&["models", model.as_str()], format!("`{model}` can never be loaded")).label(format!("needs {room}"));
        for host in (0..self.hosts.len()).filter(|host| profile.spot(self.hosts[*host].0).is_some()) {
            let name = self.hosts[host].0;
            if self.gone == Some(name) {
                continue;
            }
            let held: Vec<String> = self
                .models
                .iter()
                .filter(|(_, other)| {
                    other.replicas.min > 0
                        && other.spot(name).is_some()
                        && !(other.priority < profile.priority && other.residency != Residency::Pinned)
                })
                .map(|(id, other)| format!("`{id}` ({})", gib(device_mb(other))))
                .collect();
            let words = self.devices_in_words(host).join("; ");
            problem = match held.is_empty() {
                true => problem.note(words),
                false => problem.note(format!(
                    "{words}; held always, and not to be displaced by priority {}: {}",
                    profile.priority,
                    held.join(", ")
                )),
            };
        }
        problem.note("give it a higher priority than a resident that may make room, less context or parallel, or another host")
    }
}
