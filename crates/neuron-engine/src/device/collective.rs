//! How the ranks of one tensor-parallel model meet: alone, over threads of one process, or (on GPUs) over NCCL.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use candle_core::{Device, Result, Tensor};

/// This rank's part of a model split over `world_size` devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// 0-based.
    pub rank: usize,
    /// How many ranks there are.
    pub world_size: usize,
}

impl Shard {
    /// The whole model on one device.
    pub const WHOLE: Self = Self { rank: 0, world_size: 1 };
}

/// What the parallel linear layers need of the other ranks. Every rank calls the same operations in the same order.
pub trait Collective: Send + Sync {
    /// Called once on the thread of the rank's device, before anything else is done for the model there; may wait for the other ranks.
    fn join(&self, _device: &Device) -> Result<()> {
        Ok(())
    }
    /// The sum of all ranks' `x`, the same bits on every rank.
    fn all_reduce_sum(&self, x: Tensor) -> Result<Tensor>;
    /// All ranks' `x` side by side along `dim`, in rank order.
    fn all_gather(&self, x: Tensor, dim: usize) -> Result<Tensor>;
    /// Called by a rank whose step failed: whoever waits for it, now or later, gets an error instead of waiting for ever.
    fn abort(&self);
    /// Whether that has happened. What a step computed is then worth nothing.
    fn is_aborted(&self) -> bool;
    /// Called on the thread of the rank's device when the model leaves it: frees what the meetings took there.
    fn leave(&self) {}
}

/// One rank: both operations are the identity.
#[derive(Clone, Copy, Debug)]
pub struct Solo;

impl Collective for Solo {
    fn all_reduce_sum(&self, x: Tensor) -> Result<Tensor> {
        Ok(x)
    }

    fn all_gather(&self, x: Tensor, _dim: usize) -> Result<Tensor> {
        Ok(x)
    }

    fn abort(&self) {}

    fn is_aborted(&self) -> bool {
        false
    }
}

/// Ranks that are threads of this process: tensor parallelism as a CPU test.
#[derive(Clone)]
pub struct Local {
    rank: usize,
    meeting: Arc<Meeting>,
}

struct Meeting {
    table: Mutex<Table>,
    changed: Condvar,
}

/// What lies on the table, and which round of meeting this is. A round fills up, is read by all, and is cleared by the last reader.
struct Table {
    places: Vec<Option<Tensor>>,
    readers_left: usize,
    broken: bool,
}

impl Local {
    /// One collective per rank, in rank order.
    pub fn group(world_size: usize) -> Vec<Self> {
        let table = Table { places: vec![None; world_size], readers_left: 0, broken: false };
        let meeting = Arc::new(Meeting { table: Mutex::new(table), changed: Condvar::new() });
        (0..world_size).map(|rank| Self { rank, meeting: meeting.clone() }).collect()
    }

    /// Puts `x` down, waits for all, and picks everybody's up.
    fn exchange(&self, x: Tensor) -> Result<Vec<Tensor>> {
        let mut table = self.wait_until(|table| table.readers_left == 0)?;
        table.places[self.rank] = Some(x);
        if table.places.iter().all(Option::is_some) {
            table.readers_left = table.places.len();
            self.meeting.changed.notify_all();
        }
        drop(table);
        let mut table = self.wait_until(|table| table.readers_left > 0)?;
        let all = table.places.iter().flatten().cloned().collect();
        table.readers_left -= 1;
        if table.readers_left == 0 {
            table.places.fill(None);
            self.meeting.changed.notify_all();
        }
        Ok(all)
    }

    fn wait_until(&self, ready: impl Fn(&Table) -> bool) -> Result<MutexGuard<'_, Table>> {
        let table = self.meeting.table.lock().expect("no rank panics at the table");
        let table = self.meeting.changed.wait_while(table, |table| !table.broken && !ready(table)).expect("no rank panics at the table");
        if table.broken { candle_core::bail!("another rank failed in this step; reload the model") } else { Ok(table) }
    }
}

impl Collective for Local {
    fn all_reduce_sum(&self, x: Tensor) -> Result<Tensor> {
        let mut parts = self.exchange(x)?.into_iter();
        let first = parts.next().expect("a group has at least one rank");
        parts.try_fold(first, |sum, part| sum + part)
    }

    fn all_gather(&self, x: Tensor, dim: usize) -> Result<Tensor> {
        Tensor::cat(&self.exchange(x)?, dim)
    }

    fn abort(&self) {
        self.meeting.table.lock().expect("no rank panics at the table").broken = true;
        self.meeting.changed.notify_all();
    }

    fn is_aborted(&self) -> bool {
        self.meeting.table.lock().expect("no rank panics at the table").broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_each_rank<T: Send>(world_size: usize, work: impl Fn(usize, Local) -> T + Sync) -> Vec<T> {
        let work = &work;
        std::thread::scope(|scope| {
            let ranks: Vec<_> =
                Local::group(world_size).into_iter().enumerate().map(|(rank, local)| scope.spawn(move || work(rank, local))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn every_rank_sees_the_same_sums_in_every_round() {
        let seen = on_each_rank(3, |rank, local| {
            let round = |n: usize| {
                let x = Tensor::new(&[(10 * n + rank) as f32], &Device::Cpu).unwrap();
                local.all_reduce_sum(x).unwrap().to_vec1::<f32>().unwrap()[0]
            };
            (0..100).map(round).collect::<Vec<_>>()
        });
        let expected: Vec<f32> = (0..100).map(|n| (30 * n + 3) as f32).collect();
        assert!(seen.iter().all(|sums| *sums == expected));
    }

    #[test]
    fn gathering_keeps_rank_order() {
        let seen = on_each_rank(2, |rank, local| {
            let x = Tensor::full(rank as u32, (2, 1), &Device::Cpu).unwrap();
            local.all_gather(x, 1).unwrap().to_vec2::<u32>().unwrap()
        });
        assert_eq!(seen, vec![vec![vec![0, 1], vec![0, 1]]; 2]);
    }

    #[test]
    fn a_failed_rank_does_not_leave_the_others_waiting() {
        let seen = on_each_rank(2, |rank, local| match rank {
            0 => {
                local.abort();
                true
            }
            _ => local.all_reduce_sum(Tensor::new(&[1f32], &Device::Cpu).unwrap()).is_err(),
        });
        assert_eq!(seen, [true, true]);
    }
}
