//! Which of a model's replicas a request goes to, at a cost that hardly grows with their number.
//!
//! Looking at the open work of a thousand replicas means a thousand counters that other cores write to. A good choice needs a few of
//! them only: of [`SAMPLE_MAX`] replicas the least busy one is taken. As many as that are seen whole; of more, each request sees others,
//! and the busiest replica stays within a constant of the mean (the power of several choices; drawn as double hashing does, which is
//! known to balance as well as independent draws).
//!
//! A prefix has homes: those replicas that draw the highest lots for its key. Drawing for all takes a multiplication each and touches
//! nothing but the snapshot's own table, so that homes stay the same whatever the sample is. The bound under which affinity may choose
//! a home holds against the least busy of the sample; among more than [`SAMPLE_MAX`] that one is at most as busy as as many others.

use super::RouteRequest;
use super::score::{ServeScore, affinity, affinity_allows};
use crate::fleet::{Reach, Replicas, Standing};

/// Fit replicas whose open work is compared.
pub(super) const SAMPLE_MAX: usize = 32;

/// Replicas that may be preferred for what their caches hold. A prefix that has filled as many is spread by load alone.
pub(super) const HOMES_MAX: usize = 8;

/// Primes beyond the size of any fleet: a walk by one of them meets every replica once.
const STRIDES: [usize; 8] =
    [2_147_483_647, 1_999_999_973, 1_750_000_027, 1_879_048_183, 1_610_612_741, 1_500_000_001, 1_299_709_039, 1_073_741_827];

/// The number of the least busy fit replica, or of a home nearly as free. Fit is what is loaded on a node within `reach` that was not
/// tried. Whenever any is fit, one is chosen.
pub(super) fn choose(replicas: Replicas<'_>, request: &RouteRequest<'_>, reach: fn(&Reach) -> bool) -> Option<usize> {
    let fit = |index: &usize| is_fit(replicas, request, reach, *index);
    let sample = walk(replicas.all.len(), request.turn).filter(fit).take(SAMPLE_MAX);
    let least = sample.min_by_key(|index| score(replicas, *index))?;
    let least_tokens = replicas.at(least).1.load.tokens();
    let allowed = |index: &usize| fit(index) && affinity_allows(replicas.at(*index).1.load.tokens(), least_tokens);
    let home = request.affinity.and_then(|key| homes(replicas, key).into_iter().flatten().find(allowed));
    Some(home.unwrap_or(least))
}

pub(super) fn is_fit(replicas: Replicas<'_>, request: &RouteRequest<'_>, reach: fn(&Reach) -> bool, index: usize) -> bool {
    replicas.all[index].standing == Standing::Loaded && {
        let node = replicas.at(index).0;
        reach(&node.reach) && !request.tried.contains(&node.id)
    }
}

fn score(replicas: Replicas<'_>, index: usize) -> ServeScore {
    let (node, replica) = replicas.at(index);
    ServeScore::of(node, replica)
}

/// Every number below `len` once, from the one whose turn it is: equal replicas take turns. With each round the stride is another one.
pub(super) fn walk(len: usize, turn: usize) -> impl Iterator<Item = usize> {
    let (start, round) = (turn % len.max(1), turn / len.max(1));
    let step = STRIDES[round % STRIDES.len()] % len.max(1);
    let next = move |at: &usize| Some(if at + step < len { at + step } else { at + step - len });
    std::iter::successors(Some(start), next).take(len)
}

/// The loaded replicas with the highest lots for `key`, highest first.
fn homes(replicas: Replicas<'_>, key: u64) -> [Option<usize>; HOMES_MAX] {
    let mut homes = [None; HOMES_MAX];
    let mut lots = [0; HOMES_MAX];
    for (index, replica) in replicas.all.iter().enumerate() {
        let lot = affinity(key, replica.lot);
        let last = homes[HOMES_MAX - 1].is_some();
        if (last && lot <= lots[HOMES_MAX - 1]) || replica.standing != Standing::Loaded {
            continue;
        }
        let rank = (0..HOMES_MAX).find(|rank| homes[*rank].is_none() || lot > lots[*rank]).unwrap_or(HOMES_MAX - 1);
        homes.copy_within(rank..HOMES_MAX - 1, rank + 1);
        lots.copy_within(rank..HOMES_MAX - 1, rank + 1);
        (homes[rank], lots[rank]) = (Some(index), lot);
    }
    homes
}

#[cfg(test)]
mod tests;
