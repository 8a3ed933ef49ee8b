//! The thread that owns one device: it alone touches the device's tensors, and runs commands in the order they came.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use candle_core::Device;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info};

use crate::device::command::{Command, ModelKey, Reply, ShardLoad, ShardReport, StepInput, StepOutcome, StepReply};
use crate::device::completion::Completions;
use crate::device::condition::Condition;
use crate::device::hardware::{Gpu, Hardware, Host};
use crate::device::limits::{self, DeviceLimits};
use crate::device::memory::{Memory, memory_of};
use crate::error::{DeviceError, LoadError};
use crate::models::EncoderInput;
use crate::runner::ModelRunner;

/// Commands that may wait for the device. A full queue makes the sender wait: an engine never has more than two steps under way.
const QUEUE_LEN_MAX: usize = 64;

/// The way to a device thread. The thread ends when the last handle is dropped.
#[derive(Clone)]
pub struct DeviceHandle {
    name: Arc<str>,
    is_gpu: bool,
    commands: mpsc::Sender<Command>,
    condition: Arc<Condition>,
    /// Dropped after `commands`, whose last clone ends the thread.
    thread: Arc<Joined>,
}

/// Waits for its thread when it is dropped: a GPU must be let go of before the process ends.
struct Joined(Mutex<Option<JoinHandle<()>>>, Arc<Condition>);

impl Joined {
    /// Once, and not of a device that failed: that one cannot be let go of.
    fn take(&self) -> Option<JoinHandle<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().filter(|_| self.1.fault().is_none())
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        if let Some(thread) = self.take() {
            // It catches the panics of models; if it panicked itself, there is nothing left to wait for.
            let _ = thread.join();
        }
    }
}

impl DeviceHandle {
    /// Starts `cpu-{index}`. Several may share the processors: each is one rank of a tensor-parallel model.
    pub fn cpu(index: usize) -> std::io::Result<Self> {
        Self::start(format!("cpu-{index}"), false, Host)
    }

    /// Starts `cuda-dev-{index}`, once the GPU has been opened.
    pub fn gpu(index: usize) -> std::io::Result<Self> {
        Self::start(format!("cuda-dev-{index}"), true, Gpu(index))
    }

    /// Starts a thread called `name`, once its device has been opened.
    pub fn start(name: String, is_gpu: bool, hardware: impl Hardware) -> std::io::Result<Self> {
        let (commands, inbox) = mpsc::channel(QUEUE_LEN_MAX);
        let (opened, is_open) = std::sync::mpsc::channel();
        let name: Arc<str> = name.into();
        let own_name = name.clone();
        // The device is opened on the thread that will own it, and models are born there and never leave it.
        let run = move || match open(own_name, &hardware) {
            Ok((device, condition)) => {
                // The starter waits for exactly this.
                let _ = opened.send(Ok(condition.clone()));
                let (completions, completing) = Completions::start(&device);
                DeviceThread { hardware, device, completions, completing, models: HashMap::new(), condition }.run(inbox);
            }
            Err(error) => drop(opened.send(Err(error))),
        };
        let thread = std::thread::Builder::new().name(name.to_string()).spawn(run)?;
        match is_open.recv() {
            Ok(Ok(condition)) => {
                let thread = Arc::new(Joined(Mutex::new(Some(thread)), condition.clone()));
                Ok(Self { name, is_gpu, commands, condition, thread })
            }
            Ok(Err(failure)) => Err(std::io::Error::other(format!("{name} cannot be opened: {failure}"))),
            Err(_) => Err(std::io::Error::other(format!("the thread of {name} ended at once"))),
        }
    }

    /// True for a GPU.
    pub fn is_gpu(&self) -> bool {
        self.is_gpu
    }

    /// Whether it still works.
    pub fn condition(&self) -> &Arc<Condition> {
        &self.condition
    }

    /// Makes the device fail, for tests.
    pub async fn fail(&self) -> Result<(), DeviceError> {
        self.ask(Command::Fail).await.ok_or(DeviceError::Gone)?
    }

    /// How much memory the device has.
    pub async fn memory(&self) -> Result<Memory, DeviceError> {
        self.ask(Command::Memory).await.ok_or(DeviceError::Gone)?
    }

    /// `cpu-0`, `cuda-dev-1`: also the thread's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Begins to read one rank's part of a model; the receiver gets what came of it. For threads, not for tasks: it may block.
    pub fn load(&self, key: ModelKey, load: ShardLoad) -> oneshot::Receiver<Result<ShardReport, LoadError>> {
        let (reply, answer) = oneshot::channel();
        // A closed queue drops the reply, which the receiver sees.
        let _ = self.commands.blocking_send(Command::Load(key, Box::new(load), reply));
        answer
    }

    /// Allocates the KV cache of a loaded model.
    pub async fn reserve(&self, key: ModelKey, blocks: usize) -> Result<(), DeviceError> {
        self.ask(|reply| Command::Reserve(key, blocks, reply)).await.ok_or(DeviceError::Gone)?
    }

    /// Runs an encoder.
    pub async fn encode(&self, key: ModelKey, inputs: Vec<EncoderInput>) -> Result<Vec<Vec<f32>>, DeviceError> {
        self.ask(|reply| Command::Encode(key, inputs, reply)).await.ok_or(DeviceError::Gone)?
    }

    /// Measures what the device can do at best; best asked of an idle device.
    pub async fn limits(&self) -> Result<DeviceLimits, DeviceError> {
        self.ask(Command::Limits).await.ok_or(DeviceError::Gone)?
    }

    /// Frees a model and returns when its memory is back.
    pub async fn unload(&self, key: ModelKey) {
        self.ask(|reply| Command::Unload(key, reply)).await;
    }

    /// Ends the thread after the commands before this one, and returns when it has let go of the device. Whoever still has a handle finds
    /// nobody there. A device that failed is left as it is.
    pub async fn shutdown(&self) {
        if let Some(thread) = self.thread.take() {
            let _ = self.commands.send(Command::Shutdown).await;
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }

    /// Starts one step; the receiver gets its outcome. For threads, not for tasks: it may block.
    pub fn execute(&self, key: ModelKey, step: Arc<StepInput>) -> oneshot::Receiver<StepOutcome> {
        let (reply, answer) = StepReply::new();
        // A closed queue drops the reply, which the receiver sees.
        let _ = self.commands.blocking_send(Command::Execute(key, step, reply));
        answer
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }
}

struct DeviceThread<H> {
    hardware: H,
    device: Device,
    completions: Completions,
    completing: Option<JoinHandle<()>>,
    models: HashMap<ModelKey, ModelRunner>,
    condition: Arc<Condition>,
}

impl<H: Hardware> DeviceThread<H> {
    fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        info!("device thread started");
        while let Some(command) = inbox.blocking_recv() {
            match (self.failure(), command) {
                (_, Command::Shutdown) => break,
                (None, command) => self.obey(command),
                (Some(failure), command) => refuse(command, failure),
            }
        }
        if self.failure().is_some() {
            // What lies on a failed device can be neither used nor freed; trying to panics.
            loop {
                std::thread::park();
            }
        }
        let Self { device, condition, models, completions, completing, .. } = self;
        drop((models, completions));
        if let Some(thread) = completing {
            let _ = thread.join();
        }
        condition.rest();
        neuron_kernels::device::forget(&device);
        info!("device thread ended");
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Load(key, load, reply) => answer(reply, self.load(key, *load)),
            Command::Reserve(key, blocks, reply) => answer(reply, self.with(key, |model| model.reserve(blocks))),
            Command::Execute(key, step, reply) => self.execute(key, &step, &reply),
            Command::Encode(key, inputs, reply) => answer(reply, self.with(key, |model| model.encode(&inputs))),
            Command::Memory(reply) => {
                answer(reply, memory_of(&self.device).map_err(|error| DeviceError::Step(error.to_string())));
            }
            Command::Limits(reply) => answer(reply, self.limits()),
            Command::Unload(key, reply) => {
                self.models.remove(&key);
                if let Err(error) = neuron_kernels::device::release_unused(&self.device) {
                    error!(%error, "the device did not take its memory back");
                }
                answer(reply, ());
            }
            Command::Fail(reply) => {
                answer(reply, self.hardware.fail(&self.device).map_err(|error| DeviceError::Step(error.to_string())));
            }
            Command::Shutdown => {}
        }
    }

    /// Whether the device has failed; if so, nobody waits for its models any more.
    fn failure(&self) -> Option<DeviceError> {
        let reason = self.condition.look()?;
        self.models.values().for_each(ModelRunner::abort);
        Some(DeviceError::Failed(reason))
    }

    fn load(&mut self, key: ModelKey, load: ShardLoad) -> Result<ShardReport, LoadError> {
        let (device, completions) = (self.device.clone(), self.completions.clone());
        let runner = guard(|| ModelRunner::load(load, device, completions)).unwrap_or_else(|what| Err(LoadError::Device(what)))?;
        let report = runner.report();
        self.models.insert(key, runner);
        Ok(report)
    }

    fn limits(&self) -> Result<DeviceLimits, DeviceError> {
        let measured = guard(|| limits::measure(&self.device)).map_err(DeviceError::Panicked)?;
        measured.map_err(|error| DeviceError::Step(error.to_string()))
    }

    /// Lets a runner start a step. It answers for itself, now or when its device is done; a failure to start is answered here.
    fn execute(&mut self, key: ModelKey, step: &Arc<StepInput>, reply: &StepReply) {
        if let Err(error) = self.with(key, |model| model.execute(step, reply)) {
            reply.answer(Err(error));
        }
    }

    /// Runs `work` on a model. A failed or panicking step tells the other ranks, so that none waits for this one.
    fn with<T>(&mut self, key: ModelKey, work: impl FnOnce(&mut ModelRunner) -> candle_core::Result<T>) -> Result<T, DeviceError> {
        let model = self.models.get_mut(&key).ok_or(DeviceError::NotLoaded)?;
        let outcome = match guard(|| work(model)) {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(source)) => DeviceError::Step(source.to_string()),
            Err(what) => DeviceError::Panicked(what),
        };
        error!(error = %outcome, "a step failed");
        // The step is not to blame when the device failed, perhaps at something before it. That is known before other ranks fail of it.
        let failure = self.failure();
        if let Some(model) = self.models.get(&key) {
            model.abort();
        }
        Err(failure.unwrap_or(outcome))
    }
}

/// The device, and what is known of it from now on.
fn open(name: Arc<str>, hardware: &impl Hardware) -> Result<(Device, Arc<Condition>), String> {
    let device = hardware.open().map_err(|error| error.to_string())?;
    let probe = hardware.probe(&device).map_err(|error| error.to_string())?;
    let condition = Condition::start(name, probe).map_err(|error| error.to_string())?;
    Ok((device, condition))
}

/// Tells whoever asks that the device failed.
fn refuse(command: Command, failure: DeviceError) {
    match command {
        Command::Load(_, _, reply) => answer(reply, Err(LoadError::Device(failure.to_string()))),
        Command::Reserve(_, _, reply) | Command::Fail(reply) => answer(reply, Err(failure)),
        Command::Execute(_, _, reply) => reply.answer(Err(failure)),
        Command::Encode(_, _, reply) => answer(reply, Err(failure)),
        Command::Memory(reply) => answer(reply, Err(failure)),
        Command::Limits(reply) => answer(reply, Err(failure)),
        // There is nothing left to free.
        Command::Unload(_, reply) => answer(reply, ()),
        Command::Shutdown => {}
    }
}

/// A panic in one model's step must not end the thread that other models live on.
fn guard<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| describe(&*panic))
}

fn describe(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string).or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without a message".into())
}

/// Whoever asked may have gone: then nobody needs the answer.
fn answer<T>(reply: Reply<T>, value: T) {
    let _ = reply.send(value);
}
