//! Residents that are somewhere else than the proof has them, since their host was away for a while, and stand in the way there.
//!
//! The proof gives every model a place in a fleet whose residents are all at home. One that is not may hold the only place of another
//! model, which would then wait for ever: so it goes home. Where home is another host it is loaded there first, and leaves as surplus
//! once it serves from there. It leaves first only where its host holds it on other devices than the proven ones, or where
//! residents hold each other's places in a circle.

use super::fit::{Offer, Way};
use super::survey::Survey;
use super::{Decision, Purpose};
use crate::desired::Home;
use crate::observed::Reach;
use crate::profile::Residency;

impl Decision<'_> {
    /// Sends home whoever keeps `model` from its proven `place`.
    pub(super) fn clear(&mut self, model: usize, place: &Home) {
        self.clear_after(model, place, &mut Vec::new());
    }

    /// `true` when one of `asked`, who cannot go before this place is free, stands on it.
    fn clear_after(&mut self, model: usize, place: &Home, asked: &mut Vec<usize>) -> bool {
        let mut circle = false;
        for stray in self.survey.strays_on(place, model) {
            if asked.contains(&stray) {
                circle = true;
            } else {
                asked.push(stray);
                self.send_home(stray, model, asked);
            }
        }
        circle
    }

    fn send_home(&mut self, stray: usize, for_model: usize, asked: &mut Vec<usize>) {
        let desired = self.survey.desired;
        let replica = &self.survey.replicas[stray];
        let (here, Some(model)) = (replica.node, replica.model) else { return };
        let purpose = Purpose::Homecoming(desired.models[for_model].id.clone());
        let homes = self.survey.vacant_homes(model, here);
        for (home, node) in &homes {
            if *node == here {
                if let Some(offer) = self.survey.room_once_left(stray, model, home) {
                    self.retire(stray, purpose.words());
                    return self.accept(model, offer, &purpose);
                }
            } else if let Some(offer) = self.survey.offer(model, *node, Some(&home.devices), true) {
                return self.accept(model, offer, &purpose);
            }
        }
        let mut circle = false;
        for (home, _) in &homes {
            circle |= self.clear_after(model, home, asked);
        }
        if circle {
            self.retire(stray, purpose.words());
        }
    }
}

impl<'a> Survey<'a> {
    /// Replicas on the devices of `place` that are not at home, may move, and without whose leaving `model` cannot be there.
    fn strays_on(&self, place: &Home, model: usize) -> Vec<usize> {
        let Some(node) = self.node_of_host[place.host].filter(|node| self.nodes[*node].observed.reach == Reach::Ready) else {
            return Vec::new();
        };
        let need_mb = self.need_mb(model).unwrap_or(1) as i64;
        let (start, len) = (self.nodes[node].devices.start, self.nodes[node].devices.len());
        let mut strays = Vec::new();
        for device in place.devices.iter().filter(|index| **index < len).map(|index| start + index) {
            let on_it = |at: &usize| self.replicas[*at].observed.state.occupies() && self.is_on(*at, device);
            let here = || self.nodes[node].replicas.clone().filter(on_it);
            let others = here().filter(|at| !self.replicas[*at].leaving && !self.is_firm(*at, model));
            let could_be_mb: i64 = self.devices[device].soon_mb + others.map(|at| self.replicas[at].size_mb).sum::<i64>();
            if could_be_mb < need_mb {
                strays.extend(here().filter(|at| self.is_firm(*at, model) && self.may_go(*at) && !self.is_at_home(*at)));
            }
        }
        strays.sort_unstable();
        strays.dedup();
        strays
    }

    /// Room for `model` at `home` on the node of its replica `stray`, once that one has left.
    fn room_once_left(&mut self, stray: usize, model: usize, home: &Home) -> Option<Offer> {
        let (node, size_mb) = (self.replicas[stray].node, self.replicas[stray].size_mb);
        self.shift_soon(stray, size_mb);
        let offer = self.room(model, node, Some(&home.devices), true);
        self.shift_soon(stray, -size_mb);
        offer.map(|offer| match offer.way {
            Way::Now => Offer { way: Way::Wait, ..offer },
            _ => offer,
        })
    }

    /// Whether it makes room for `model` at no time.
    fn is_firm(&self, at: usize, model: usize) -> bool {
        let Some(owner) = self.replicas[at].model else { return false };
        let profile = &self.desired.models[owner].profile;
        let outranks = profile.residency == Residency::Pinned || profile.priority >= self.desired.models[model].profile.priority;
        self.is_needed(owner) && outranks
    }

    /// Whether it is on the very devices on which the proof has it. What has no proven place is nowhere a stray.
    fn is_at_home(&self, at: usize) -> bool {
        let replica = &self.replicas[at];
        let host = self.nodes[replica.node].host;
        let homes = replica.model.map_or(&[][..], |model| &self.desired.models[model].homes);
        homes.is_empty() || homes.iter().any(|home| Some(home.host) == host && home.devices == replica.observed.devices)
    }

    /// Proven places of `model` that no node has it on, but for `stray_on`, which may have it on other devices.
    fn vacant_homes(&self, model: usize, stray_on: usize) -> Vec<(&'a Home, usize)> {
        let homes = self.desired.models[model].homes.iter().filter_map(|home| Some((home, self.node_of_host[home.host]?)));
        let holds = |node: usize| {
            let replicas = &self.replicas[self.nodes[node].replicas.clone()];
            replicas.iter().any(|replica| replica.model == Some(model) && replica.observed.state.occupies())
        };
        homes.filter(|(_, node)| (*node == stray_on || !holds(*node)) && !self.nodes[*node].claimed.contains(&model)).collect()
    }
}
