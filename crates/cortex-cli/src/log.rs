//! Where log lines go: to the journal under systemd, to standard error elsewhere.

use std::io::{BufWriter, IsTerminal};
use std::os::unix::fs::MetadataExt;

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

use crate::error::{CliError, Result};
use crate::style::Style;

/// Lines that standard error has not taken yet; beyond them lines are dropped, so that a reader who stops reading stops nobody else.
const LINES_MAX: usize = 16_384;
/// Lines are written together, up to so many bytes, while more of them wait.
const WRITE_BYTES: usize = 64 << 10;

/// Writes what is left when it is dropped.
#[must_use]
pub(crate) struct Logging {
    _writer: Option<WorkerGuard>,
}

/// Starts logging; `CORTEX_LOG` replaces `default` (`info`, `debug,hyper=warn`).
pub(crate) fn start(default: &str) -> Result<Logging> {
    let wanted = std::env::var("CORTEX_LOG").unwrap_or_else(|_| default.into());
    let filter = EnvFilter::try_new(&wanted).map_err(|error| {
        CliError::new(format!("CORTEX_LOG=`{wanted}` cannot be understood: {error}"))
            .note("write a level (info, debug) or target=level, with commas")
    })?;
    let journal = is_stderr_the_journal().then(tracing_journald::layer).and_then(std::result::Result::ok);
    let (to_stderr, writer) = match journal {
        Some(_) => (None, None),
        None => {
            let (lines, writer) = stderr();
            let terminal = std::io::stderr().is_terminal();
            (Some(fmt::layer().with_writer(lines).with_ansi(Style::of_stderr().colour).with_target(!terminal)), Some(writer))
        }
    };
    tracing_subscriber::registry().with(filter).with(journal).with(to_stderr).init();
    Ok(Logging { _writer: writer })
}

/// Standard error, written by a thread of its own.
fn stderr() -> (NonBlocking, WorkerGuard) {
    let lines = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_MAX).thread_name("log");
    lines.finish(BufWriter::with_capacity(WRITE_BYTES, std::io::stderr()))
}

/// systemd sets `JOURNAL_STREAM=device:inode` of the stream it connected; a redirected standard error is another one.
fn is_stderr_the_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    std::fs::metadata("/proc/self/fd/2").is_ok_and(|stream| format!("{}:{}", stream.dev(), stream.ino()) == named)
}
