//! What is to happen when a device has done a step, without its thread waiting for that.

use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use candle_core::Device;
use tracing::error;

/// Runs what waits for the device: on a thread of its own beside a GPU, at once beside a CPU, which is done when it returns.
#[derive(Clone)]
pub struct Completions(Option<Sender<Completion>>);

/// Waits for the device, then answers. The queue needs no bound: an engine has at most two steps under way.
type Completion = Box<dyn FnOnce() + Send>;

impl Completions {
    /// Those of `device`, and the thread that runs them, where there is one; it ends with the last clone.
    pub fn start(device: &Device) -> (Self, Option<JoinHandle<()>>) {
        if device.is_cpu() {
            return (Self(None), None);
        }
        let (sender, inbox) = channel::<Completion>();
        let name = format!("{}-done", std::thread::current().name().unwrap_or("device"));
        let thread = std::thread::Builder::new().name(name).spawn(move || inbox.into_iter().for_each(|completion| completion()));
        match thread {
            Ok(thread) => (Self(Some(sender)), Some(thread)),
            Err(error) => {
                error!(%error, "no thread for completions: the device's own waits for each step");
                (Self(None), None)
            }
        }
    }

    /// Runs `completion` behind those before it.
    pub fn run(&self, completion: impl FnOnce() + Send + 'static) {
        match &self.0 {
            Some(sender) => {
                if let Err(refused) = sender.send(Box::new(completion)) {
                    refused.0();
                }
            }
            None => completion(),
        }
    }
}
