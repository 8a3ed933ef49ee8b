//! What a command says when it fails: what went wrong, what to do about it, and the exit status.

use std::fmt;
use std::process::ExitCode;

/// The result of a command.
pub(crate) type Result<T> = std::result::Result<T, CliError>;

/// What the exit status tells a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Something failed.
    Failed = 1,
    /// Wrong usage; clap ends with the same.
    Usage = 2,
    /// The gateway does not answer.
    Unreachable = 3,
    /// The command worked; what it shows is not well.
    Degraded = 4,
    /// Stopped by Ctrl-C.
    Interrupted = 130,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

/// An error for the person at the keyboard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CliError {
    message: String,
    /// Each says what to do next, or what lies beneath.
    notes: Vec<String>,
    status: Status,
}

impl CliError {
    /// Says what went wrong, and where.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), notes: Vec::new(), status: Status::Failed }
    }

    /// Adds what to do next.
    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// Replaces the exit status.
    pub(crate) fn with_status(mut self, status: Status) -> Self {
        self.status = status;
        self
    }

    /// The exit status.
    pub(crate) fn status(&self) -> Status {
        self.status
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = self.message.trim_end().lines();
        write!(f, "error: {}", lines.next().unwrap_or_default())?;
        for line in lines {
            write!(f, "\n  {line}")?;
        }
        for note in &self.notes {
            write!(f, "\n  = {note}")?;
        }
        Ok(())
    }
}

impl From<anyhow::Error> for CliError {
    fn from(error: anyhow::Error) -> Self {
        error.chain().skip(1).fold(Self::new(error.to_string()), |shown, cause| shown.note(cause.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_and_what_next() {
        let error = CliError::new("cannot reach the gateway at http://127.0.0.1:31313").note("start one: cortex up");
        insta::assert_snapshot!(error, @r"
        error: cannot reach the gateway at http://127.0.0.1:31313
          = start one: cortex up
        ");
    }

    #[test]
    fn a_chain_of_causes_becomes_notes() {
        let error = anyhow::anyhow!("connection refused").context("node `beast` does not answer").context("cannot load the model\nat all");
        insta::assert_snapshot!(CliError::from(error), @r"
        error: cannot load the model
          at all
          = node `beast` does not answer
          = connection refused
        ");
    }
}
