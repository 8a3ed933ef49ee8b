//! Server-sent events: writing them, and reading them from any chunking.

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;

/// Ends an OpenAI stream that went well.
pub const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// A comment: tells a reader that the writer is alive, and is no event.
pub const PING: Bytes = Bytes::from_static(b": ping\n\n");

/// Appends `data: <json>` and the blank line that ends an event.
pub fn write_data(out: &mut BytesMut, data: &impl Serialize) {
    out.put_slice(b"data: ");
    write_json(out, data);
    out.put_slice(b"\n\n");
}

/// Appends `event: <name>`, `data: <json>` and the blank line that ends an event.
pub fn write_event(out: &mut BytesMut, name: &str, data: &impl Serialize) {
    out.put_slice(b"event: ");
    out.put_slice(name.as_bytes());
    out.put_slice(b"\n");
    write_data(out, data);
}

/// JSON text holds no raw line break, so one `data` line is always enough.
fn write_json(out: &mut BytesMut, data: &impl Serialize) {
    serde_json::to_writer(out.writer(), data).expect("our envelopes are maps with string keys");
}

/// One event, as the EventSource standard dispatches it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SseEvent {
    /// The `event` field; empty when there was none.
    pub name: String,
    /// The `data` lines, joined by line feeds.
    pub data: String,
}

/// Why a stream cannot be read on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// One event is larger than the reader accepts.
    #[error("an event of the stream is larger than {event_bytes_max} bytes")]
    TooLarge {
        /// The limit.
        event_bytes_max: usize,
    },
}

/// An incremental reader: bytes in, cut anywhere, events out. Comments, `id` and `retry` are skipped; invalid UTF-8 is replaced.
#[derive(Debug)]
pub struct SseParser {
    event_bytes_max: usize,
    /// The current line, as far as it came in earlier chunks.
    line: Vec<u8>,
    event: SseEvent,
    has_data: bool,
    /// The last byte was a carriage return, so that a line feed now belongs to it.
    after_cr: bool,
    at_start: bool,
}

impl SseParser {
    /// A reader that refuses events (or single lines) of more than `event_bytes_max` bytes.
    pub fn new(event_bytes_max: usize) -> Self {
        Self { event_bytes_max, line: Vec::new(), event: SseEvent::default(), has_data: false, after_cr: false, at_start: true }
    }

    /// Reads a chunk and hands each complete event to `emit`. After an error the parser must not be used again.
    pub fn push(&mut self, mut bytes: &[u8], mut emit: impl FnMut(SseEvent)) -> Result<(), SseError> {
        while let Some(&first) = bytes.first() {
            if std::mem::take(&mut self.after_cr) && first == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let end = bytes.iter().position(|&byte| byte == b'\n' || byte == b'\r');
            let piece = &bytes[..end.unwrap_or(bytes.len())];
            if self.line.len() + self.event.data.len() + piece.len() > self.event_bytes_max {
                return Err(SseError::TooLarge { event_bytes_max: self.event_bytes_max });
            }
            let Some(end) = end else {
                self.line.extend_from_slice(piece);
                break;
            };
            self.after_cr = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            if let Some(event) = self.end_of_line(piece) {
                emit(event);
            }
        }
        Ok(())
    }

    /// True when the bytes so far end inside an event: a stream that closes now was cut.
    pub fn is_inside_event(&self) -> bool {
        self.has_data || !self.line.is_empty()
    }

    fn end_of_line(&mut self, piece: &[u8]) -> Option<SseEvent> {
        let mut whole = std::mem::take(&mut self.line);
        let line = if whole.is_empty() {
            piece
        } else {
            whole.extend_from_slice(piece);
            &whole
        };
        let line = if std::mem::take(&mut self.at_start) { line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line) } else { line };
        if line.is_empty() { self.dispatch() } else { self.field(line) }
    }

    /// A blank line: the event is complete, unless it has no data.
    fn dispatch(&mut self) -> Option<SseEvent> {
        let event = std::mem::take(&mut self.event);
        std::mem::take(&mut self.has_data).then_some(event)
    }

    fn field(&mut self, line: &[u8]) -> Option<SseEvent> {
        let colon = line.iter().position(|&byte| byte == b':').unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default();
        let value = String::from_utf8_lossy(value.strip_prefix(b" ").unwrap_or(value));
        match &line[..colon] {
            b"data" if std::mem::replace(&mut self.has_data, true) => {
                self.event.data.push('\n');
                self.event.data.push_str(&value);
            }
            b"data" => self.event.data = value.into_owned(),
            b"event" => self.event.name = value.into_owned(),
            _ => {}
        }
        None
    }
}
