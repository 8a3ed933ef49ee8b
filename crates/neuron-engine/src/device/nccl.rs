//! Ranks on several GPUs of one host, joined by NCCL.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

use candle_core::{Device, Result, Tensor, bail};
use neuron_kernels::interleave;
use neuron_kernels::nccl::{Communicator, Meeting};

use crate::device::collective::Collective;

/// One rank. It joins the others on the thread of its device, before anything else that thread does for the model.
pub struct Nccl {
    rank: usize,
    group: Arc<Group>,
}

struct Group {
    meeting: Meeting,
    /// In rank order; empty until that rank has joined.
    ranks: Vec<OnceLock<Communicator>>,
    aborted: AtomicBool,
}

impl Nccl {
    /// One collective per rank, in rank order.
    pub fn group(world_size: usize) -> Result<Vec<Self>> {
        let ranks = (0..world_size).map(|_| OnceLock::new()).collect();
        let group = Arc::new(Group { meeting: Meeting::new()?, ranks, aborted: AtomicBool::new(false) });
        Ok((0..world_size).map(|rank| Self { rank, group: group.clone() }).collect())
    }

    fn communicator(&self) -> Result<&Communicator> {
        match self.group.ranks[self.rank].get() {
            Some(communicator) => Ok(communicator),
            None => bail!("rank {} has not joined the others", self.rank),
        }
    }
}

impl Collective for Nccl {
    fn join(&self, device: &Device) -> Result<()> {
        let joined = Communicator::join(self.group.meeting, self.rank, self.group.ranks.len(), device)?;
        match self.group.ranks[self.rank].set(joined) {
            Ok(()) => Ok(()),
            Err(_) => bail!("rank {} joined twice", self.rank),
        }
    }

    fn all_reduce_sum(&self, x: Tensor) -> Result<Tensor> {
        self.communicator()?.all_reduce_sum(&x.contiguous()?)
    }

    fn all_gather(&self, x: Tensor, dim: usize) -> Result<Tensor> {
        let parts = self.communicator()?.all_gather(&x.contiguous()?)?;
        match (dim, x.rank()) {
            (0, _) => parts.flatten(0, 1),
            (1, 2) => interleave(&parts),
            _ => bail!("ranks join along the first dimension, or the second of two"),
        }
    }

    fn abort(&self) {
        if self.group.aborted.swap(true, SeqCst) {
            return;
        }
        // Each end may wait for its kernels, and those for kernels of other ranks.
        std::thread::scope(|scope| {
            for communicator in self.group.ranks.iter().filter_map(OnceLock::get) {
                scope.spawn(|| communicator.abort());
            }
        });
    }

    fn is_aborted(&self) -> bool {
        self.group.aborted.load(SeqCst)
    }

    fn leave(&self) {
        if let Some(communicator) = self.group.ranks[self.rank].get() {
            communicator.abort();
        }
    }
}
