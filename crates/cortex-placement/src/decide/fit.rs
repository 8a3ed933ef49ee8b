//! Where a model could go: devices that suffice now, soon, or once others make room.

use std::cmp::Reverse;

use super::survey::{DeviceView, Survey};
use crate::observed::{ModelState, Reach};
use crate::profile::{Mode, ModelProfile};

/// A place for one replica.
#[derive(Clone, Debug)]
pub(super) struct Offer {
    pub(super) node: usize,
    /// Indices within the node.
    pub(super) devices: Vec<usize>,
    pub(super) way: Way,
}

/// How the place becomes free.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// The node has it still, draining.
    TakeBack(usize),
    /// The memory is free.
    Now,
    /// It will be free without more being done, or the device is at another load.
    Wait,
    /// These replicas must leave.
    Evict(Vec<usize>),
}

impl Survey<'_> {
    /// The best place on any node where the placement, and `mode`, let `model` go.
    pub(super) fn best_offer(&self, model: usize, may_evict: bool, mode: impl Fn(Mode) -> bool) -> Option<Offer> {
        let wanted = &self.desired.models[model];
        let best = |may_evict: bool| {
            let cheapest = |nodes: &mut dyn Iterator<Item = usize>| {
                let nodes = nodes.filter(|node| may_evict || self.may_have_room(model, *node));
                let offers = nodes.filter_map(|node| self.offer(model, node, None, may_evict));
                offers.min_by_key(|offer| self.cost(model, offer))
            };
            match wanted.profile.placement.is_empty() {
                true => cheapest(&mut (0..self.nodes.len())),
                false => {
                    let hosts = wanted.spots.iter().filter(|(_, spot)| mode(spot.mode));
                    cheapest(&mut hosts.filter_map(|(host, _)| self.node_of_host[*host]))
                }
            }
        };
        // Whom to have leave takes the longest to find out, and is worth it only where no node has room.
        best(false).or_else(|| may_evict.then(|| best(true)).flatten())
    }

    /// Whether it is worth to look closer: most nodes of a busy fleet have no room, and this costs next to nothing.
    fn may_have_room(&self, model: usize, node: usize) -> bool {
        let Some(need_mb) = self.need_mb(model) else { return true };
        self.devices[self.nodes[node].devices.clone()].iter().any(|device| device.soon_mb >= need_mb as i64)
    }

    /// What is cheapest comes first; the node's number makes the order total.
    fn cost(&self, model: usize, offer: &Offer) -> impl Ord + use<> {
        let wanted = &self.desired.models[model];
        let node = &self.nodes[offer.node];
        let way = match &offer.way {
            Way::TakeBack(_) => (0, None),
            Way::Now => (1, None),
            Way::Wait => (2, None),
            Way::Evict(victims) => (3, Some(self.loss(victims))),
        };
        let known = wanted.witness.iter().chain(&wanted.homes).any(|home| Some(home.host) == node.host);
        let open: usize = self.replicas[node.replicas.clone()].iter().map(|replica| replica.observed.in_flight).sum();
        let free: i64 = self.devices[node.devices.clone()].iter().map(|device| device.soon_mb).sum();
        (way, !known, open, Reverse(free), offer.node)
    }

    /// A place for `model` on `node`: on `fixed` devices, or else on those that its spot names, or else on any.
    pub(super) fn offer(&self, model: usize, node: usize, fixed: Option<&[usize]>, may_evict: bool) -> Option<Offer> {
        let view = &self.nodes[node];
        if view.observed.reach != Reach::Ready || !self.desired.allows(model, view.host) || view.claimed.contains(&model) {
            return None;
        }
        if let Some(present) = view.replicas.clone().find(|at| self.replicas[*at].model == Some(model)) {
            match self.replicas[present].observed.state {
                ModelState::Failed { failures } => {
                    let spared = self.now.ms_since(self.replicas[present].observed.since) < self.desired.policy().retry_ms(failures);
                    if spared {
                        return None;
                    }
                }
                ModelState::Draining => return self.take_back(present),
                _ => return None,
            }
        }
        self.room(model, node, fixed, may_evict)
    }

    /// The same, whatever the node holds of it now.
    pub(super) fn room(&self, model: usize, node: usize, fixed: Option<&[usize]>, may_evict: bool) -> Option<Offer> {
        let wanted = &self.desired.models[model];
        let view = &self.nodes[node];
        let need_mb = self.need_mb(model).unwrap_or(1) as i64;
        let count = wanted.profile.tensor_parallel();
        let spot = view.host.and_then(|host| wanted.spot(host)).and_then(|spot| spot.devices.as_deref());
        let devices = self.eligible(&wanted.profile, node, fixed.or(spot));
        let fits = |want: fn(&DeviceView, i64) -> bool| {
            let fit = devices.iter().copied().filter(move |at| want(&self.devices[*at], need_mb));
            tightest(fit.map(|at| (self.devices[at].soon_mb, at)).collect(), count)
        };
        let now =
            fits(|device, need| !device.loading && device.free_mb >= need && device.soon_mb >= need).map(|devices| (devices, Way::Now));
        let wait = || fits(|device, need| device.soon_mb >= need).map(|devices| (devices, Way::Wait));
        let evict = || self.evict(model, node, &devices, need_mb, count).map(|(devices, victims)| (devices, Way::Evict(victims)));
        let (devices, way) = now.or_else(wait).or_else(|| if may_evict { evict() } else { None })?;
        let start = view.devices.start;
        Some(Offer { node, devices: devices.into_iter().map(|at| at - start).collect(), way })
    }

    /// A replica that was told to leave may stay as long as nobody has claimed its memory.
    fn take_back(&self, at: usize) -> Option<Offer> {
        let replica = &self.replicas[at];
        let unclaimed = self.devices_of(at).all(|device| self.devices[device].soon_mb >= replica.size_mb);
        (unclaimed && !replica.taken_back).then(|| Offer {
            node: replica.node,
            devices: replica.observed.devices.clone(),
            way: Way::TakeBack(at),
        })
    }

    /// Devices of `node` that meet what the model requires, by their place in [`Survey::devices`].
    fn eligible(&self, profile: &ModelProfile, node: usize, only: Option<&[usize]>) -> Vec<usize> {
        let all = self.nodes[node].devices.clone();
        if profile.requires.devices_min.is_some_and(|min| all.len() < min) {
            return Vec::new();
        }
        let start = all.start;
        let meets = |at: &usize| {
            let device = &self.devices[*at];
            let capable = profile.requires.compute_capability_min.is_none_or(|min| device.compute_capability >= Some(min));
            !device.poisoned && capable && profile.requires.device_memory_mb_min.is_none_or(|min| device.memory_mb >= min)
        };
        all.filter(|at| only.is_none_or(|only| only.contains(&(at - start)))).filter(meets).collect()
    }

    /// Takes the memory of an offer.
    pub(super) fn claim(&mut self, model: usize, offer: &Offer) {
        let need_mb = self.need_mb(model).unwrap_or(1) as i64;
        let start = self.nodes[offer.node].devices.start;
        self.nodes[offer.node].touched = true;
        self.nodes[offer.node].claimed.push(model);
        match offer.way {
            Way::TakeBack(at) => {
                self.replicas[at].taken_back = true;
                self.shift_soon(at, -self.replicas[at].size_mb);
            }
            Way::Now | Way::Wait | Way::Evict(_) => {
                let now = matches!(offer.way, Way::Now);
                for index in &offer.devices {
                    let device = &mut self.devices[start + index];
                    device.soon_mb -= need_mb;
                    device.free_mb -= if now { need_mb } else { 0 };
                    device.loading |= now;
                }
            }
        }
        self.serving[model] += 1;
        self.kept[model] += 1;
        self.loading[model] = true;
    }
}

/// The `count` devices on which the least would be left over, so that large holes stay whole.
fn tightest(mut fit: Vec<(i64, usize)>, count: usize) -> Option<Vec<usize>> {
    if fit.len() < count {
        return None;
    }
    fit.sort_unstable();
    let mut devices: Vec<usize> = fit.into_iter().take(count).map(|(_, at)| at).collect();
    devices.sort_unstable();
    Some(devices)
}
