//! Writing to standard output, which may close early (`cortex status | head`).

use std::io::{ErrorKind, Write};

use crate::error::{CliError, Result};

/// Writes `text` as it is.
pub(crate) fn text(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(CliError::new(format!("cannot write to standard output: {error}"))),
        _ => Ok(()),
    }
}

/// Writes `value`, indented, for programs and people.
pub(crate) fn json(value: &serde_json::Value) -> Result<()> {
    text(&format!("{value:#}\n"))
}
