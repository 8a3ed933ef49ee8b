//! Lines written together, so that whoever logs need not wake the thread that writes for each of them.

use std::io::{BufWriter, Result, Write};
use std::thread::sleep;
use std::time::Duration;

/// So long lines gather between two writes.
const GATHER: Duration = Duration::from_millis(20);

/// Is flushed by the thread that writes when no line waits, and lets some gather before that one looks again.
pub(crate) struct Gathered<W: Write>(pub(crate) BufWriter<W>);

impl<W: Write> Write for Gathered<W> {
    fn write(&mut self, line: &[u8]) -> Result<usize> {
        self.0.write(line)
    }

    fn flush(&mut self) -> Result<()> {
        let written = self.0.flush();
        sleep(GATHER);
        written
    }
}
