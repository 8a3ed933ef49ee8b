//! Devices: the thread that owns one, what it can be told, and how several meet.

pub mod collective;
pub mod command;
pub mod completion;
pub mod condition;
pub mod hardware;
pub mod limits;
pub mod memory;
pub mod nccl;
pub mod sampling;
pub mod thread;
mod watchdog;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::executor::block_on;
use futures::future::{BoxFuture, Either, join_all, select, select_all, try_join_all};
use tokio::sync::oneshot;

use crate::device::collective::{Collective, Local, Shard, Solo};
use crate::device::command::{ModelKey, ShardLoad, ShardReport, StepInput, StepOutcome};
use crate::device::nccl::Nccl;
use crate::device::thread::DeviceHandle;
use crate::device::watchdog::Watchdog;
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
    /// Rank 0's.
    comm: Arc<dyn Collective>,
    /// Where there are other ranks to wait for.
    watchdog: Option<Arc<Watchdog>>,
}

/// A step that was handed to its ranks.
pub struct PendingStep {
    /// One per rank, in rank order.
    answers: Vec<oneshot::Receiver<StepOutcome>>,
    ranks: RankGroup,
}

impl PendingStep {
    /// Blocks until every rank has answered, one has failed, or it is clear that they will not; gives rank 0's output.
    pub fn wait(self) -> StepOutcome {
        let Self { answers, ranks } = self;
        let answers = answers.into_iter().map(|answer| answer.map(|answer| answer.unwrap_or(Err(DeviceError::Gone))));
        // A driver does not always wake those who wait for a device that failed.
        let vain = ranks.vain();
        let outcome = match block_on(select(try_join_all(answers), vain)) {
            Either::Left((outputs, _)) => outputs.map(|mut outputs| outputs.swap_remove(0)),
            Either::Right((error, _)) => Err(error),
        };
        if let Some(watchdog) = &ranks.watchdog {
            watchdog.end();
        }
        match outcome {
            Err(error @ DeviceError::Failed(_)) => Err(error),
            // What such a step computed is worth nothing, and its own error only a consequence.
            _ if ranks.comm.is_aborted() => Err(parted()),
            outcome => outcome,
        }
    }
}

/// What is said of a step whose ranks did not come together.
fn parted() -> DeviceError {
    DeviceError::Step("another rank failed in this step; reload the model".into())
}

impl RankGroup {
    /// Hands one step to every rank. They run steps in the order of submission; a further one may follow before this one's end.
    pub fn submit(&self, key: ModelKey, step: &Arc<StepInput>) -> PendingStep {
        let _order = self.order.lock().expect("no holder panics");
        if let Some(watchdog) = &self.watchdog {
            watchdog.begin();
        }
        let answers = self.devices.iter().map(|device| device.execute(key, step.clone())).collect();
        PendingStep { answers, ranks: self.clone() }
    }

    /// Hands each rank its part to load, in the same order as steps: ranks that join wait for each other.
    pub async fn load(&self, key: ModelKey, loads: Vec<ShardLoad>) -> Result<Vec<ShardReport>, LoadError> {
        let this = self.clone();
        let hand_over = move || {
            let _order = this.order.lock().expect("no holder panics");
            this.devices.iter().zip(loads).map(|(device, load)| device.load(key, load)).collect::<Vec<_>>()
        };
        let gone = || LoadError::Device("a device's thread has ended; restart neuron".into());
        let answers = tokio::task::spawn_blocking(hand_over).await.map_err(|_| gone())?;
        join_all(answers).await.into_iter().map(|answer| answer.map_err(|_| gone())?).collect()
    }

    /// Rank 0's device.
    pub fn first(&self) -> &DeviceHandle {
        &self.devices[0]
    }

    /// The device threads, in rank order.
    pub fn devices(&self) -> &[DeviceHandle] {
        &self.devices
    }

    /// Why what these devices hold is lost, once one of them failed.
    pub fn loss(&self) -> Option<DeviceError> {
        self.devices.iter().find_map(|device| device.condition().look()).map(DeviceError::Failed)
    }

    /// Waits until it is clear that a step will not end.
    fn vain(&self) -> BoxFuture<'static, DeviceError> {
        let failures = self.devices.iter().map(|device| device.condition().clone().failure().map(DeviceError::Failed).boxed());
        let parting = self.watchdog.clone().map(|watchdog| watchdog.parting().map(|()| parted()).boxed());
        select_all(failures.chain(parting)).map(|(error, ..)| error).boxed()
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

    /// These devices, at least one.
    pub fn of(devices: Vec<DeviceHandle>) -> Self {
        Self { devices: devices.into(), order: StepOrder::default() }
    }

    /// Why each device does nothing any more, where that is so.
    pub fn faults(&self) -> Vec<Option<String>> {
        self.devices.iter().map(|device| device.condition().fault()).collect()
    }

    /// Waits until a device fails, and tells which and why. For ever, once the devices' threads have ended.
    pub fn failure(&self) -> BoxFuture<'static, String> {
        let failure = |device: &DeviceHandle| {
            let name = device.name().to_owned();
            device.condition().clone().failure().map(move |reason| format!("{name}: {reason}")).boxed()
        };
        select_all(self.devices.iter().map(failure)).map(|(reason, ..)| reason).boxed()
    }

    /// Makes a device fail, as a kernel with an error in it would. For tests.
    pub async fn fail(&self, index: usize) -> Result<(), DeviceError> {
        self.devices.get(index).ok_or(DeviceError::Gone)?.fail().await
    }

    /// Lets go of all devices. A process must have done so when it ends: the driver's own end does not bear that others use it meanwhile.
    pub async fn shutdown(&self) {
        join_all(self.devices.iter().map(DeviceHandle::shutdown)).await;
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
            _ if self.are_gpus() => {
                let group = Nccl::group(world_size).map_err(|error| LoadError::Device(error.to_string()))?;
                group.into_iter().map(|rank| Arc::new(rank) as Arc<dyn Collective>).collect()
            }
            _ => Local::group(world_size).into_iter().map(|local| Arc::new(local) as Arc<dyn Collective>).collect(),
        };
        let rank = |(rank, (index, comm)): (usize, (usize, _))| Rank {
            device: self.devices[index].clone(),
            shard: Shard { rank, world_size },
            comm,
        };
        Ok(chosen.into_iter().zip(comms).enumerate().map(rank).collect())
    }

    /// The same ranks, for stepping; a step of several may take `step_max`.
    pub fn group(&self, ranks: &[Rank], step_max: Duration) -> std::io::Result<RankGroup> {
        let comm = ranks.first().map_or_else(|| Arc::new(Solo) as Arc<dyn Collective>, |rank| rank.comm.clone());
        let watchdog = if ranks.len() > 1 { Some(Watchdog::start(comm.clone(), step_max)?) } else { None };
        Ok(RankGroup { devices: ranks.iter().map(|rank| rank.device.clone()).collect(), order: self.order.clone(), comm, watchdog })
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
