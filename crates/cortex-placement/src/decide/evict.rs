//! Who makes room for whom.

use std::cmp::Reverse;

use super::survey::Survey;
use crate::policy::Eviction;
use crate::profile::Residency;

/// What leaving costs: residents first, then those in use, then by priority and recency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Loss {
    residents: usize,
    in_use: usize,
    priority_max: i32,
    used_last: Reverse<u64>,
    count: usize,
}

impl Survey<'_> {
    /// `count` of `devices`, and the replicas whose leaving makes `need_mb` free on each.
    pub(super) fn evict(
        &self,
        model: usize,
        node: usize,
        devices: &[usize],
        need_mb: i64,
        count: usize,
    ) -> Option<(Vec<usize>, Vec<usize>)> {
        let mut leaving: Vec<usize> = self.nodes[node].replicas.clone().filter(|at| self.yields(*at, model)).collect();
        leaving.sort_by_key(|at| self.turn(*at));
        let mut ways: Vec<(Loss, usize, Vec<usize>)> = devices
            .iter()
            .filter_map(|device| self.clear(*device, need_mb, &leaving).map(|victims| (self.loss(&victims), *device, victims)))
            .collect();
        if ways.len() < count {
            return None;
        }
        ways.sort_unstable();
        ways.truncate(count);
        let mut chosen: Vec<usize> = ways.iter().map(|(_, device, _)| *device).collect();
        chosen.sort_unstable();
        let wanted: Vec<usize> = leaving.into_iter().filter(|at| ways.iter().any(|(_, _, victims)| victims.contains(at))).collect();
        Some((chosen.clone(), self.spare(wanted, &chosen, need_mb)))
    }

    /// The first of `leaving` that make `need_mb` free on `device`.
    fn clear(&self, device: usize, need_mb: i64, leaving: &[usize]) -> Option<Vec<usize>> {
        let mut free_mb = self.devices[device].soon_mb;
        let mut victims = Vec::new();
        for at in leaving.iter().filter(|at| self.is_on(**at, device)) {
            if free_mb >= need_mb {
                break;
            }
            free_mb += self.replicas[*at].size_mb;
            victims.push(*at);
        }
        if free_mb < need_mb {
            return None;
        }
        Some(self.spare(victims, &[device], need_mb))
    }

    /// Leaves out whom the need can be met without, the dearest first.
    fn spare(&self, mut victims: Vec<usize>, devices: &[usize], need_mb: i64) -> Vec<usize> {
        let suffices = |victims: &[usize], without: usize| {
            devices.iter().all(|device| {
                let freed = victims.iter().filter(|at| **at != without && self.is_on(**at, *device));
                self.devices[*device].soon_mb + freed.map(|at| self.replicas[*at].size_mb).sum::<i64>() >= need_mb
            })
        };
        for at in victims.clone().into_iter().rev() {
            if suffices(&victims, at) {
                victims.retain(|other| *other != at);
            }
        }
        victims
    }

    /// Whether a replica may be made to leave for `model`.
    fn yields(&self, at: usize, model: usize) -> bool {
        if !self.may_go(at) {
            return false;
        }
        let Some(owner) = self.replicas[at].model else { return true };
        let (own, other) = (&self.desired.models[owner].profile, &self.desired.models[model].profile);
        if owner == model || own.residency == Residency::Pinned {
            return false;
        }
        match self.is_needed(owner) {
            true => other.priority > own.priority,
            false => other.priority >= own.priority || self.is_idle(at),
        }
    }

    /// Whether one serving replica less would be fewer than are held always. One on its way in does not serve yet.
    pub(super) fn is_needed(&self, model: usize) -> bool {
        let min = self.desired.terms[model].replicas.min;
        min > 0 && self.serving[model].saturating_sub(usize::from(self.loading[model])) <= min
    }

    /// The order in which replicas leave.
    fn turn(&self, at: usize) -> impl Ord + use<> {
        let replica = &self.replicas[at];
        let needed = replica.model.is_some_and(|model| self.is_needed(model));
        let priority = match self.desired.policy().eviction {
            Eviction::Lru => 0,
            Eviction::Priority => replica.model.map_or(i32::MIN, |model| self.desired.models[model].profile.priority),
        };
        (needed, priority, Reverse(self.unused_ms(at)), at)
    }

    pub(super) fn loss(&self, victims: &[usize]) -> Loss {
        let mut loss = Loss { priority_max: i32::MIN, used_last: Reverse(u64::MAX), ..Loss::default() };
        for at in victims {
            let model = self.replicas[*at].model;
            loss.residents += usize::from(model.is_some_and(|model| self.is_needed(model)));
            loss.in_use += usize::from(self.replicas[*at].observed.in_flight > 0);
            if self.desired.policy().eviction == Eviction::Priority {
                loss.priority_max = loss.priority_max.max(model.map_or(i32::MIN, |model| self.desired.models[model].profile.priority));
            }
            // The most recently used of them decides.
            loss.used_last = loss.used_last.max(Reverse(self.unused_ms(*at)));
            loss.count += 1;
        }
        loss
    }
}
