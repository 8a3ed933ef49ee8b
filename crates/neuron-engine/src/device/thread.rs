//! The thread that owns one device: it alone touches the device's tensors, and runs commands in the order they came.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use candle_core::Device;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info};

use crate::device::command::{Command, ModelKey, Reply, ShardLoad, ShardReport, StepInput, StepOutcome, StepReply};
use crate::device::limits::{self, DeviceLimits};
use crate::error::{DeviceError, LoadError};
use crate::runner::ModelRunner;

/// Commands that may wait for the device. A full queue makes the sender wait: an engine never has more than two steps under way.
const QUEUE_LEN_MAX: usize = 64;

/// The way to a device thread. The thread ends when the last handle is dropped.
#[derive(Clone)]
pub struct DeviceHandle {
    name: Arc<str>,
    commands: mpsc::Sender<Command>,
}

impl DeviceHandle {
    /// Starts `cpu-{index}`. Several may share the processors: each is one rank of a tensor-parallel model.
    pub fn cpu(index: usize) -> std::io::Result<Self> {
        Self::start(format!("cpu-{index}"), Device::Cpu)
    }

    fn start(name: String, device: Device) -> std::io::Result<Self> {
        let (commands, inbox) = mpsc::channel(QUEUE_LEN_MAX);
        // Models are born on the thread and never leave it.
        let run = move || DeviceThread { device, models: HashMap::new() }.run(inbox);
        std::thread::Builder::new().name(name.clone()).spawn(run)?;
        Ok(Self { name: name.into(), commands })
    }

    /// `cpu-0`, `cuda-dev-1`: also the thread's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads one rank's part of a model.
    pub async fn load(&self, key: ModelKey, load: ShardLoad) -> Result<ShardReport, LoadError> {
        let gone = || LoadError::Device(format!("the thread of {} has ended; restart neuron", self.name));
        self.ask(|reply| Command::Load(key, Box::new(load), reply)).await.ok_or_else(gone)?
    }

    /// Allocates the KV cache of a loaded model.
    pub async fn reserve(&self, key: ModelKey, blocks: usize) -> Result<(), DeviceError> {
        self.ask(|reply| Command::Reserve(key, blocks, reply)).await.ok_or(DeviceError::Gone)?
    }

    /// Runs an encoder.
    pub async fn encode(&self, key: ModelKey, inputs: Vec<Vec<u32>>) -> Result<Vec<Vec<f32>>, DeviceError> {
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

struct DeviceThread {
    device: Device,
    models: HashMap<ModelKey, ModelRunner>,
}

impl DeviceThread {
    fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        info!("device thread started");
        while let Some(command) = inbox.blocking_recv() {
            match command {
                Command::Load(key, load, reply) => answer(reply, self.load(key, *load)),
                Command::Reserve(key, blocks, reply) => answer(reply, self.with(key, |model| model.reserve(blocks))),
                Command::Execute(key, step, reply) => self.execute(key, &step, &reply),
                Command::Encode(key, inputs, reply) => answer(reply, self.with(key, |model| model.encode(&inputs))),
                Command::Limits(reply) => answer(reply, self.limits()),
                Command::Unload(key, reply) => {
                    self.models.remove(&key);
                    answer(reply, ());
                }
                Command::Shutdown => break,
            }
        }
        info!("device thread ended");
    }

    fn load(&mut self, key: ModelKey, load: ShardLoad) -> Result<ShardReport, LoadError> {
        let device = self.device.clone();
        let runner = guard(|| ModelRunner::load(load, device)).unwrap_or_else(|what| Err(LoadError::Device(what)))?;
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
        model.abort();
        Err(outcome)
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
