//! Where log lines go: to the journal under systemd, to stderr elsewhere.

use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogSettings;

/// Sets the process's logger up. A journal that cannot be reached falls back to stderr.
pub fn init(settings: &LogSettings) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&settings.filter)?;
    let journal = settings.journal_stream.as_deref().filter(|stream| is_stderr(stream)).and_then(|_| tracing_journald::layer().ok());
    let registry = tracing_subscriber::registry().with(filter);
    match journal {
        Some(journal) => registry.with(journal).try_init()?,
        None => registry
            .with(tracing_subscriber::fmt::layer().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr))
            .try_init()?,
    }
    Ok(())
}

/// `JOURNAL_STREAM` is inherited by children that write elsewhere; it counts only where it names our stderr.
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
