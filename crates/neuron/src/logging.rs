//! How the daemon logs.

use std::io::IsTerminal;

use cortex_log::{LogError, Logging, Style};

use crate::config::LogSettings;

/// Sets the process's logger up, as long as what comes back is kept.
///
/// # Errors
/// A filter that is not understood, or a logger that is there already.
pub fn init(settings: &LogSettings) -> Result<Logging, LogError> {
    cortex_log::start(Style {
        filter: &settings.filter,
        journal_stream: settings.journal_stream.as_deref(),
        ansi: std::io::stderr().is_terminal(),
        target: true,
    })
}
