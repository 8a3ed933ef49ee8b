//! Where log lines go: to the journal under systemd, to standard error elsewhere, each from a thread of its own. Whoever has something to
//! say hands it over and goes on; what does not fit into the queue is left out and counted.

mod aside;
mod gathered;
mod line;

use std::io::BufWriter;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use gathered::Gathered;

pub use aside::{Aside, Drain};

/// Lines that wait to be written; beyond them lines are left out, so that a reader who stops reading stops nobody else.
const LINES_MAX: usize = 16_384;
/// Lines for standard error are written together, up to so many bytes, while more of them wait.
const WRITE_BYTES: usize = 64 << 10;

/// Lines that the journal's queue had no room for.
static NOT_IN_JOURNAL: AtomicU64 = AtomicU64::new(0);
/// The same of standard error's, once it is in use.
static NOT_ON_STDERR: OnceLock<ErrorCounter> = OnceLock::new();

/// What is logged, and how it looks.
#[derive(Clone, Copy, Debug)]
pub struct Style<'a> {
    /// `info`, or `debug,hyper=warn`.
    pub filter: &'a str,
    /// `JOURNAL_STREAM`, which systemd sets to the `device:inode` of the stream it connected.
    pub journal_stream: Option<&'a str>,
    /// Colours, where lines go to standard error.
    pub ansi: bool,
    /// The module that speaks, where lines go to standard error.
    pub target: bool,
}

/// Why logging does not start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter.
    #[error("the log filter `{filter}` cannot be understood: {why}")]
    Filter {
        /// As it was given.
        filter: String,
        /// What is wrong with it.
        why: String,
    },
    /// Somebody was faster.
    #[error(transparent)]
    Started(#[from] TryInitError),
}

/// The threads that write. Dropping it waits, but not for long, until they have written what is left.
#[must_use]
#[derive(Debug)]
pub struct Logging {
    _to_stderr: Option<WorkerGuard>,
    _to_journal: Option<Drain>,
}

/// Has everything that this process logs go where it should. A journal that cannot be reached falls back to standard error.
///
/// # Errors
/// A filter that is not understood, or logging that has begun already.
pub fn start(style: Style<'_>) -> Result<Logging, LogError> {
    let wrong = |error: tracing_subscriber::filter::ParseError| LogError::Filter { filter: style.filter.into(), why: error.to_string() };
    let filter = EnvFilter::try_new(style.filter).map_err(wrong)?;
    let registry = tracing_subscriber::registry().with(filter);
    let journal = style.journal_stream.filter(|stream| is_stderr(stream)).and_then(|_| tracing_journald::layer().ok());
    match journal {
        Some(journal) => {
            let (aside, drain) = aside(journal, LINES_MAX);
            registry.with(aside).try_init()?;
            Ok(Logging { _to_stderr: None, _to_journal: Some(drain) })
        }
        None => {
            let (lines, worker) = stderr();
            let lines = fmt::layer().with_writer(lines).with_ansi(style.ansi).with_target(style.target);
            registry.with(if style.ansi { lines.boxed() } else { lines.fmt_fields(plain()).boxed() }).try_init()?;
            Ok(Logging { _to_stderr: Some(worker), _to_journal: None })
        }
    }
}

/// A layer that may block, on a thread of its own. Up to `lines_max` events wait for it; what finds no room counts in [`lines_dropped`].
pub fn aside(layer: impl Layer<Registry> + Send + Sync + 'static, lines_max: usize) -> (Aside, Drain) {
    Aside::new(layer, lines_max, &NOT_IN_JOURNAL)
}

/// Log lines of this process that were left out because their reader took no more.
pub fn lines_dropped() -> u64 {
    let not_on_stderr = NOT_ON_STDERR.get().map_or(0, |counter| counter.dropped_lines() as u64);
    NOT_IN_JOURNAL.load(Ordering::Relaxed) + not_on_stderr
}

/// Fields as they are written where there is no colour, without a look at the style of each of their parts.
fn plain() -> impl for<'writer> FormatFields<'writer> + 'static {
    debug_fn(|line, field, value| match field.name() {
        "message" => write!(line, "{value:?}"),
        name => write!(line, "{name}={value:?}"),
    })
    .delimited(" ")
}

/// Standard error, written by a thread of its own.
fn stderr() -> (NonBlocking, WorkerGuard) {
    let lines = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_MAX).thread_name("log");
    let (lines, worker) = lines.finish(Gathered(BufWriter::with_capacity(WRITE_BYTES, std::io::stderr())));
    let _ = NOT_ON_STDERR.set(lines.error_counter());
    (lines, worker)
}

/// `JOURNAL_STREAM` is inherited by children that write elsewhere; it counts only where it names our standard error.
fn is_stderr(journal_stream: &str) -> bool {
    std::fs::metadata("/proc/self/fd/2").is_ok_and(|stderr| names(journal_stream, stderr.dev(), stderr.ino()))
}

/// `device:inode` in decimal.
fn names(journal_stream: &str, device: u64, inode: u64) -> bool {
    journal_stream.split_once(':').is_some_and(|(dev, ino)| dev.parse() == Ok(device) && ino.parse() == Ok(inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_used_only_where_stderr_is_its_stream() {
        for (stream, expected) in [("8:42", true), ("8:43", false), ("9:42", false), ("8", false), ("", false), ("a:b", false)] {
            assert_eq!(names(stream, 8, 42), expected, "{stream}");
        }
    }
}
