//! Packing replicas into devices: greedy with repair first, then, for fleets of up to [`EXACT_DEVICES_MAX`] devices, every way there is.

use std::cmp::Reverse;
use std::collections::HashSet;

use cortex_core::ModelId;

/// Beyond so many devices only the greedy search is done, and its failure proves nothing.
pub(super) const EXACT_DEVICES_MAX: usize = 64;

/// Partial packings that the exact search looks at before it gives up.
const STEPS_MAX: usize = 400_000;

/// One replica to place.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) model: ModelId,
    /// Hosts, each with the devices that may be used.
    pub(super) options: Vec<(usize, Vec<usize>)>,
    /// How many of them it takes.
    pub(super) devices: usize,
    /// MiB on each.
    pub(super) device_mb: u64,
}

/// Where an item is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) host: usize,
    pub(super) devices: Vec<usize>,
}

pub(super) enum Outcome {
    /// One place for each item, in their order.
    Packed(Vec<Place>),
    /// There is no way.
    Impossible,
    /// None was found, and not every way was tried.
    Undecided,
}

/// Finds places that `accept` is content with.
pub(super) fn pack(items: &[Item], free: &[Vec<u64>], mut accept: impl FnMut(&[Place]) -> bool) -> Outcome {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|at| {
        let item = &items[*at];
        (item.options.len() > 1, Reverse(item.device_mb * item.devices as u64), item.options.len(), *at)
    });
    if let Some(places) = (Packing { items, free: free.to_vec(), places: vec![None; items.len()] }).greedy(&order)
        && accept(&places)
    {
        return Outcome::Packed(places);
    }
    if free.iter().map(Vec::len).sum::<usize>() > EXACT_DEVICES_MAX {
        return Outcome::Undecided;
    }
    let packing = Packing { items, free: free.to_vec(), places: vec![None; items.len()] };
    let mut search = Search { packing, order: &order, steps: 0, accept };
    match search.descend(0) {
        Some(places) => Outcome::Packed(places),
        None if search.steps < STEPS_MAX => Outcome::Impossible,
        None => Outcome::Undecided,
    }
}

/// Some items in their places, and what is free beside them.
struct Packing<'a> {
    items: &'a [Item],
    free: Vec<Vec<u64>>,
    places: Vec<Option<Place>>,
}

impl Packing<'_> {
    /// Each in turn where it fits most tightly; one that fits nowhere may push a single other aside.
    fn greedy(mut self, order: &[usize]) -> Option<Vec<Place>> {
        for at in order {
            match self.tightest(*at) {
                Some(place) => self.put(*at, place),
                None if self.push_aside(*at) => {}
                None => return None,
            }
        }
        self.places.into_iter().collect()
    }

    fn tightest(&self, at: usize) -> Option<Place> {
        let item = &self.items[at];
        let mut best: Option<(u64, Place)> = None;
        for (host, eligible) in item.options.iter().filter(|(host, _)| !self.has_sibling(at, *host)) {
            let mut fit: Vec<(u64, usize)> =
                eligible.iter().map(|index| (self.free[*host][*index], *index)).filter(|(free, _)| *free >= item.device_mb).collect();
            if fit.len() < item.devices {
                continue;
            }
            fit.sort_unstable();
            fit.truncate(item.devices);
            let left: u64 = fit.iter().map(|(free, _)| free - item.device_mb).sum();
            if best.as_ref().is_none_or(|(least, _)| left < *least) {
                let mut devices: Vec<usize> = fit.into_iter().map(|(_, index)| index).collect();
                devices.sort_unstable();
                best = Some((left, Place { host: *host, devices }));
            }
        }
        best.map(|(_, place)| place)
    }

    fn push_aside(&mut self, at: usize) -> bool {
        for other in 0..self.items.len() {
            let Some(place) = self.places[other].clone() else { continue };
            if !self.items[at].options.iter().any(|(host, _)| *host == place.host) {
                continue;
            }
            self.take(other);
            if let Some(mine) = self.tightest(at) {
                self.put(at, mine);
                if let Some(its) = self.tightest(other) {
                    self.put(other, its);
                    return true;
                }
                self.take(at);
            }
            self.put(other, place);
        }
        false
    }

    /// Replicas of one model are on different hosts.
    fn has_sibling(&self, at: usize, host: usize) -> bool {
        let model = &self.items[at].model;
        // Siblings are neighbours in the list.
        let same = |other: &usize| self.items[*other].model == *model;
        let back = (0..at).rev().take_while(same);
        let forth = (at + 1..self.items.len()).take_while(same);
        back.chain(forth).any(|other| self.places[other].as_ref().is_some_and(|place| place.host == host))
    }

    fn put(&mut self, at: usize, place: Place) {
        for index in &place.devices {
            self.free[place.host][*index] -= self.items[at].device_mb;
        }
        self.places[at] = Some(place);
    }

    fn take(&mut self, at: usize) {
        if let Some(place) = self.places[at].take() {
            for index in &place.devices {
                self.free[place.host][*index] += self.items[at].device_mb;
            }
        }
    }

    /// Every place of an item that differs in what it leaves: equally free devices of a host are tried once.
    fn ways(&self, at: usize) -> Vec<Place> {
        let item = &self.items[at];
        let mut ways = Vec::new();
        for (host, eligible) in item.options.iter().filter(|(host, _)| !self.has_sibling(at, *host)) {
            let fit: Vec<usize> = eligible.iter().copied().filter(|index| self.free[*host][*index] >= item.device_mb).collect();
            let mut seen = HashSet::new();
            let mut chosen = Vec::new();
            combinations(&fit, item.devices, &mut chosen, &mut |devices| {
                let mut kind: Vec<(u64, u64)> = devices.iter().map(|index| (self.free[*host][*index], self.class(*host, *index))).collect();
                kind.sort_unstable();
                if seen.insert(kind) {
                    ways.push(Place { host: *host, devices: devices.to_vec() });
                }
            });
        }
        ways.sort_by_key(|place| place.devices.iter().map(|index| self.free[place.host][*index]).sum::<u64>());
        ways
    }

    /// Devices of a host that the same items may use, and that hold the same items, are of one class.
    fn class(&self, host: usize, index: usize) -> u64 {
        let mut class = 0xcbf2_9ce4_8422_2325_u64;
        for (item, place) in self.items.iter().zip(&self.places) {
            let may = item.options.iter().any(|(at, devices)| *at == host && devices.contains(&index));
            let holds = place.as_ref().is_some_and(|place| place.host == host && place.devices.contains(&index));
            class = (class ^ (u64::from(may) + 2 * u64::from(holds) + 1)).wrapping_mul(0x0100_0000_01b3);
        }
        class
    }
}

/// Depth first, the largest items first.
struct Search<'a, A> {
    packing: Packing<'a>,
    order: &'a [usize],
    steps: usize,
    accept: A,
}

impl<A: FnMut(&[Place]) -> bool> Search<'_, A> {
    fn descend(&mut self, depth: usize) -> Option<Vec<Place>> {
        self.steps += 1;
        if self.steps >= STEPS_MAX {
            return None;
        }
        let Some(at) = self.order.get(depth).copied() else {
            let places: Vec<Place> = self.packing.places.iter().flatten().cloned().collect();
            return (self.accept)(&places).then_some(places);
        };
        if !self.can_still_fit(depth) {
            return None;
        }
        for place in self.packing.ways(at) {
            self.packing.put(at, place);
            if let Some(found) = self.descend(depth + 1) {
                return Some(found);
            }
            self.packing.take(at);
        }
        None
    }

    /// What is left to place must not exceed what is left to take.
    fn can_still_fit(&self, depth: usize) -> bool {
        let wanted: u64 =
            self.order[depth..].iter().map(|at| self.packing.items[*at].device_mb * self.packing.items[*at].devices as u64).sum();
        let least = self.order[depth..].iter().map(|at| self.packing.items[*at].device_mb).min().unwrap_or(0);
        wanted <= self.packing.free.iter().flatten().filter(|free| **free >= least).sum()
    }
}

fn combinations(from: &[usize], count: usize, chosen: &mut Vec<usize>, found: &mut impl FnMut(&[usize])) {
    if count == 0 {
        return found(chosen);
    }
    for (at, index) in from.iter().enumerate() {
        chosen.push(*index);
        combinations(&from[at + 1..], count - 1, chosen, found);
        chosen.pop();
    }
}
