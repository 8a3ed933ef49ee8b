//! Where log lines go: to the journal under systemd, to standard error elsewhere.

use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

use crate::error::{CliError, Result};
use crate::style::Style;

/// Starts logging; `CORTEX_LOG` replaces `default` (`info`, `debug,hyper=warn`).
pub(crate) fn start(default: &str) -> Result<()> {
    let wanted = std::env::var("CORTEX_LOG").unwrap_or_else(|_| default.into());
    let filter = EnvFilter::try_new(&wanted).map_err(|error| {
        CliError::new(format!("CORTEX_LOG=`{wanted}` cannot be understood: {error}"))
            .note("write a level (info, debug) or target=level, with commas")
    })?;
    let journal = is_stderr_the_journal().then(tracing_journald::layer).and_then(std::result::Result::ok);
    let to_stderr = journal.is_none().then(|| {
        let terminal = std::io::stderr().is_terminal();
        fmt::layer().with_writer(std::io::stderr).with_ansi(Style::of_stderr().colour).with_target(!terminal)
    });
    tracing_subscriber::registry().with(filter).with(journal).with(to_stderr).init();
    Ok(())
}

/// systemd sets `JOURNAL_STREAM=device:inode` of the stream it connected; a redirected standard error is another one.
fn is_stderr_the_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    std::fs::metadata("/proc/self/fd/2").is_ok_and(|stream| format!("{}:{}", stream.dev(), stream.ino()) == named)
}
