//! Whether a device still works. Its thread asks, its engines ask, and a sentinel asks while both wait for what may never come.

use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;
use tracing::error;

use crate::device::hardware::Probe;

/// How often the sentinel asks.
const LOOK: Duration = Duration::from_millis(100);

/// What is known of one device.
pub struct Condition {
    name: Arc<str>,
    probe: Option<Probe>,
    fault: watch::Sender<Option<String>>,
    sentinel: Mutex<Option<Sentinel>>,
}

/// A thread that asks until the sender is gone.
struct Sentinel {
    goes_on: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Condition {
    /// Of the device called `name`. Without a probe it never fails; with one, a thread asks until [`Self::rest`].
    pub(super) fn start(name: Arc<str>, probe: Option<Probe>) -> io::Result<Arc<Self>> {
        let asks = probe.is_some();
        let condition = Arc::new(Self { probe, fault: watch::Sender::new(None), name, sentinel: Mutex::default() });
        if asks {
            let watched = Arc::downgrade(&condition);
            let (goes_on, ends) = mpsc::channel();
            let thread = std::thread::Builder::new().name(format!("{}-look", condition.name));
            let thread = thread.spawn(move || keep_looking(&watched, &ends))?;
            *condition.sentinel() = Some(Sentinel { goes_on, thread });
        }
        Ok(condition)
    }

    /// Ends the asking, and returns when nobody does any more: the driver must not be asked while it is taken down.
    pub(super) fn rest(&self) {
        if let Some(Sentinel { goes_on, thread }) = self.sentinel().take() {
            drop(goes_on);
            // It does not panic; if it did, it asks no more.
            let _ = thread.join();
        }
    }

    fn sentinel(&self) -> std::sync::MutexGuard<'_, Option<Sentinel>> {
        self.sentinel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why it does nothing any more, as far as is known.
    pub fn fault(&self) -> Option<String> {
        self.fault.borrow().clone()
    }

    /// The same, after asking the device. Does not wait for it.
    pub fn look(&self) -> Option<String> {
        if let Some(fault) = self.fault() {
            return Some(fault);
        }
        let reason = self.probe.as_ref().and_then(|probe| probe())?;
        if self.fault.send_if_modified(|fault| fault.is_none() && fault.replace(reason.clone()).is_none()) {
            error!(device = %self.name, %reason, "the device failed");
        }
        Some(reason)
    }

    /// Waits until it fails, and tells why. For ever, once nobody knows of the device any more.
    pub async fn failure(self: Arc<Self>) -> String {
        let mut fault = self.fault.subscribe();
        drop(self);
        match fault.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone()) {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }
}

fn keep_looking(condition: &Weak<Condition>, ends: &mpsc::Receiver<()>) {
    while let Some(condition) = condition.upgrade() {
        if condition.look().is_some() {
            return;
        }
        drop(condition);
        if ends.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}
