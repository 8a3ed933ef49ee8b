//! Being told to stop, or to read the configuration again.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{CliError, Result};

/// The two signals that mean "stop": Ctrl-C and what a service manager sends.
pub(crate) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// From here on the signals do not end the process by themselves.
    pub(crate) fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(|error| CliError::new(format!("cannot listen for signals: {error}")));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The signal that means "read your configuration again".
pub(crate) struct ReloadSignal(Signal);

impl ReloadSignal {
    /// From here on the signal does not end the process.
    pub(crate) fn listen() -> Result<Self> {
        let listening = signal(SignalKind::hangup());
        listening.map(Self).map_err(|error| CliError::new(format!("cannot listen for signals: {error}")))
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        self.0.recv().await;
    }
}
