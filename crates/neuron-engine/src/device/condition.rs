//! Whether a device still works. Its thread asks, its engines ask, and a sentinel asks while both wait for what may never come.

use std::io;
use std::sync::{Arc, Weak};
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
}

impl Condition {
    /// Of the device called `name`. Without a probe it never fails; with one, a thread asks until the last handle is gone.
    pub(super) fn start(name: Arc<str>, probe: Option<Probe>) -> io::Result<Arc<Self>> {
        let asks = probe.is_some();
        let condition = Arc::new(Self { probe, fault: watch::Sender::new(None), name });
        if asks {
            let watched = Arc::downgrade(&condition);
            std::thread::Builder::new().name(format!("{}-look", condition.name)).spawn(move || keep_looking(&watched))?;
        }
        Ok(condition)
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

fn keep_looking(condition: &Weak<Condition>) {
    while let Some(condition) = condition.upgrade() {
        if condition.look().is_some() {
            return;
        }
        drop(condition);
        std::thread::sleep(LOOK);
    }
}
