//! How the ranks of one tensor-parallel model meet: alone, over threads of one process, or (on GPUs) over NCCL.

use std::sync::{Arc, Barrier, Mutex};

use candle_core::{Result, Tensor};

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
    /// The sum of all ranks' `x`, added in rank order so that every rank has the same bits.
    fn all_reduce_sum(&self, x: Tensor) -> Result<Tensor>;
    /// All ranks' `x` side by side along `dim`, in rank order.
    fn all_gather(&self, x: Tensor, dim: usize) -> Result<Tensor>;
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
}

/// Ranks that are threads of this process: tensor parallelism as a CPU test.
#[derive(Clone)]
pub struct Local {
    rank: usize,
    meeting: Arc<Meeting>,
}

struct Meeting {
    barrier: Barrier,
    places: Mutex<Vec<Option<Tensor>>>,
}

impl Local {
    /// One collective per rank, in rank order.
    pub fn group(world_size: usize) -> Vec<Self> {
        let meeting = Arc::new(Meeting { barrier: Barrier::new(world_size), places: Mutex::new(vec![None; world_size]) });
        (0..world_size).map(|rank| Self { rank, meeting: meeting.clone() }).collect()
    }

    /// Puts `x` down, waits for all, and picks everybody's up. The second wait keeps a fast rank from overwriting its place
    /// before a slow one has read it.
    fn exchange(&self, x: Tensor) -> Vec<Tensor> {
        let places = || self.meeting.places.lock().expect("no rank panics while it holds the places");
        places()[self.rank] = Some(x);
        self.meeting.barrier.wait();
        let all = places().iter().map(|place| place.clone().expect("every rank has put its tensor down before the barrier")).collect();
        self.meeting.barrier.wait();
        all
    }
}

impl Collective for Local {
    fn all_reduce_sum(&self, x: Tensor) -> Result<Tensor> {
        let mut parts = self.exchange(x).into_iter();
        let first = parts.next().expect("a group has at least one rank");
        parts.try_fold(first, |sum, part| sum + part)
    }

    fn all_gather(&self, x: Tensor, dim: usize) -> Result<Tensor> {
        Tensor::cat(&self.exchange(x), dim)
    }
}
