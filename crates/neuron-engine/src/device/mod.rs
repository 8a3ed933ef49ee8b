//! Devices: the thread that owns one, what it can be told, and how several meet.

pub mod collective;
pub mod command;
pub mod completion;
pub mod limits;
pub mod memory;
pub mod sampling;
pub mod thread;

use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use crate::device::collective::{Collective, Local, Shard, Solo};
use crate::device::command::{ModelKey, StepInput, StepOutcome};
use crate::device::thread::DeviceHandle;
use crate::error::{DeviceError, LoadError};

/// The devices of this node, in index order.
#[derive(Clone)]
pub struct DeviceSet {
    devices: Arc<[DeviceHandle]>,
    order: StepOrder,
}

/// Held while a step is handed to all ranks of a model. Without it two models that share two devices could reach them in opposite
/// order, and each would wait for the other inside a collective.
type StepOrder = Arc<Mutex<()>>;

/// The ranks of one loaded model, as its engine sees them.
#[derive(Clone)]
pub struct RankGroup {
    devices: Vec<DeviceHandle>,
    order: StepOrder,
}

/// A step that was handed to its ranks.
pub struct PendingStep {
    /// One per rank, in rank order.
    answers: Vec<oneshot::Receiver<StepOutcome>>,
}

impl PendingStep {
    /// Blocks until every rank has answered; gives rank 0's output, or the first error.
    pub fn wait(self) -> StepOutcome {
        let outputs: Vec<_> = self.answers.into_iter().map(|answer| answer.blocking_recv().unwrap_or(Err(DeviceError::Gone))).collect();
        let mut outputs = outputs.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(outputs.swap_remove(0))
    }
}

impl RankGroup {
    /// Hands one step to every rank. They run steps in the order of submission; a further one may follow before this one's end.
    pub fn submit(&self, key: ModelKey, step: &Arc<StepInput>) -> PendingStep {
        let _order = self.order.lock().expect("no holder panics");
        PendingStep { answers: self.devices.iter().map(|device| device.execute(key, step.clone())).collect() }
    }

    /// Rank 0's device.
    pub fn first(&self) -> &DeviceHandle {
        &self.devices[0]
    }

    /// The device threads, in rank order.
    pub fn devices(&self) -> &[DeviceHandle] {
        &self.devices
    }
}

/// One rank of a model: the device and the part it holds.
pub struct Rank {
    /// Where.
    pub device: DeviceHandle,
    /// Which part.
    pub shard: Shard,
    /// How it meets the other ranks.
    pub comm: Arc<dyn Collective>,
}

impl DeviceSet {
    /// `count` device threads on the host's processors. One is the normal number; more let a model be split on a CPU.
    pub fn cpu(count: usize) -> std::io::Result<Self> {
        Ok(Self { devices: (0..count).map(DeviceHandle::cpu).collect::<Result<_, _>>()?, order: StepOrder::default() })
    }

    /// The GPUs of this host. Where none can be used, `cpu_ranks` threads on its processors, and why.
    pub fn detect(cpu_ranks: usize) -> std::io::Result<(Self, Option<String>)> {
        let opened = neuron_kernels::device::count().and_then(|count| {
            let devices = (0..count).map(DeviceHandle::gpu).collect::<std::io::Result<Arc<[_]>>>();
            devices.map_err(|error| error.to_string())
        });
        match opened {
            Ok(devices) => Ok((Self { devices, order: StepOrder::default() }, None)),
            Err(reason) => Ok((Self::cpu(cpu_ranks)?, Some(reason))),
        }
    }

    /// Whether the devices are GPUs.
    pub fn are_gpus(&self) -> bool {
        self.devices.iter().any(DeviceHandle::is_gpu)
    }

    /// The names of the device threads.
    pub fn names(&self) -> Vec<String> {
        self.devices.iter().map(|device| device.name().to_string()).collect()
    }

    /// Chooses the devices of a model split `world_size` ways: those named, or the first ones.
    pub fn ranks(&self, world_size: usize, named: Option<&[usize]>) -> Result<Vec<Rank>, LoadError> {
        let chosen: Vec<usize> = named.map_or_else(|| (0..world_size).collect(), <[usize]>::to_vec);
        self.check(world_size, &chosen)?;
        let comms: Vec<Arc<dyn Collective>> = match world_size {
            1 => vec![Arc::new(Solo)],
            _ => Local::group(world_size).into_iter().map(|local| Arc::new(local) as Arc<dyn Collective>).collect(),
        };
        let rank = |(rank, (index, comm)): (usize, (usize, _))| Rank {
            device: self.devices[index].clone(),
            shard: Shard { rank, world_size },
            comm,
        };
        Ok(chosen.into_iter().zip(comms).enumerate().map(rank).collect())
    }

    /// The same ranks, for stepping.
    pub fn group(&self, ranks: &[Rank]) -> RankGroup {
        RankGroup { devices: ranks.iter().map(|rank| rank.device.clone()).collect(), order: self.order.clone() }
    }

    fn check(&self, world_size: usize, chosen: &[usize]) -> Result<(), LoadError> {
        let have = self.devices.len();
        let distinct = chosen.iter().collect::<std::collections::BTreeSet<_>>().len();
        if world_size == 0 || chosen.len() != world_size || distinct != world_size {
            let what = format!("tensor_parallel = {world_size} needs as many different devices, but devices = {chosen:?}");
            return Err(LoadError::Device(what));
        }
        match chosen.iter().find(|&&index| index >= have) {
            Some(index) => Err(LoadError::Device(format!("there is no device {index}: this node has {}", self.names().join(", ")))),
            None => Ok(()),
        }
    }
}
