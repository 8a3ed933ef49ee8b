//! Why a packing is impossible: the smallest set of models that cannot be held at the same time.

use std::collections::BTreeSet;

use cortex_core::ModelId;

use super::pack::{Item, Outcome, pack};
use super::{Fleet, device_mb};
use crate::problem::Problem;
use crate::words::{gib, names};

/// Up to so many models every pair and every triple is tried; of more, a set is shrunk until nothing can be left out.
const ENUMERATED_MAX: usize = 40;

impl Fleet<'_> {
    /// The conflict in words, at its model of the lowest priority.
    pub(super) fn conflict(&self, items: &[Item]) -> Problem {
        let mut set = self.smallest(items);
        set.sort_by_key(|model| (self.models[model].priority, model.clone()));
        let path = ["models", set[0].as_str()];
        let need = |model: &ModelId| {
            let profile = &self.models[model];
            let each =
                if profile.tensor_parallel() > 1 { format!(" on each of {} devices", profile.tensor_parallel()) } else { String::new() };
            let times = if profile.replicas.min > 1 { format!(", {} times", profile.replicas.min) } else { String::new() };
            format!("`{model}` needs {}{each}{times}", gib(device_mb(profile)))
        };
        let hosts: BTreeSet<usize> = items
            .iter()
            .filter(|item| set.contains(&item.model))
            .flat_map(|item| item.options.iter().filter(|(_, devices)| !devices.is_empty()).map(|(host, _)| *host))
            .collect();
        let places: Vec<&str> = hosts.iter().map(|host| self.hosts[*host].0.as_str()).collect();
        let message = match (set.len(), places.is_empty()) {
            (_, true) => format!("no host that may hold `{}` is left", set[0]),
            (1, _) => format!("`{}` is held always and does not fit {}", set[0], names(&places)),
            _ => format!("{} are held always and do not fit {} together", names(&set), names(&places)),
        };
        let mut problem = Problem::at(&path, message).label(need(&set[0]));
        for model in &set[1..] {
            problem = problem.note(need(model));
        }
        for host in hosts {
            problem = problem.note(self.devices_in_words(host).join("; "));
        }
        problem.note("let one of them be residency = 'on_demand, give it another host, or less context, parallel or bits")
    }

    /// The search gave up.
    pub(super) fn undecided(&self, items: &[Item]) -> Problem {
        let models: BTreeSet<&ModelId> = items.iter().map(|item| &item.model).collect();
        let devices: usize = self.free.iter().map(Vec::len).sum();
        Problem::at(&["models"], format!("no placement of the {} models that are held always was found", models.len()))
            .note(format!("not every way was tried over {devices} devices, so there may be one; there is little room to spare in any case"))
            .note("name the hosts of large models in `placement`, or let some be residency = 'on_demand")
    }

    fn smallest(&self, items: &[Item]) -> Vec<ModelId> {
        let all: Vec<ModelId> = items.iter().map(|item| item.model.clone()).collect::<BTreeSet<_>>().into_iter().collect();
        if all.len() <= ENUMERATED_MAX {
            for size in 1..=3.min(all.len()) {
                if let Some(found) = subsets(&all, size).find(|set| self.conflicts(items, set)) {
                    return found;
                }
            }
        }
        self.shrink(items, all)
    }

    /// Leaves out ever smaller pieces as long as the rest still conflicts.
    fn shrink(&self, items: &[Item], mut set: Vec<ModelId>) -> Vec<ModelId> {
        let mut piece = set.len().div_ceil(2).max(1);
        loop {
            let mut at = 0;
            while at < set.len() && set.len() > 1 {
                let rest: Vec<ModelId> =
                    set.iter().enumerate().filter(|(index, _)| !(at..at + piece).contains(index)).map(|(_, id)| id.clone()).collect();
                if !rest.is_empty() && self.conflicts(items, &rest) {
                    set = rest;
                } else {
                    at += piece;
                }
            }
            if piece == 1 {
                return set;
            }
            piece = piece.div_ceil(2);
        }
    }

    fn conflicts(&self, items: &[Item], set: &[ModelId]) -> bool {
        let some: Vec<Item> = items.iter().filter(|item| set.contains(&item.model)).cloned().collect();
        matches!(pack(&some, &self.free, |_| true), Outcome::Impossible)
    }
}

/// Every subset of `size`, in order.
fn subsets(all: &[ModelId], size: usize) -> impl Iterator<Item = Vec<ModelId>> {
    let mut at: Vec<usize> = (0..size).collect();
    let count = all.len();
    let mut done = size > count;
    std::iter::from_fn(move || {
        if done {
            return None;
        }
        let found = at.iter().map(|index| all[*index].clone()).collect();
        match (0..size).rev().find(|position| at[*position] < count - size + position) {
            Some(position) => {
                at[position] += 1;
                for later in position + 1..size {
                    at[later] = at[later - 1] + 1;
                }
            }
            None => done = true,
        }
        Some(found)
    })
}
