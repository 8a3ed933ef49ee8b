//! The body of a node's answer on its way to the client: frames pass as they are, an [`Observer`] looks on.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cortex_core::openai::ApiError;
use cortex_core::sse;
use cortex_net::PooledBody;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::{Observer, Outcome, causes, usage_of};
use crate::fleet::LoadGuard;

/// How long the end of a stream waits for the usage, which a node sends right after it.
const USAGE_WAIT_MAX: Duration = Duration::from_secs(1);

/// Dropping it drops the node's body, which closes the connection and cancels the generation there.
#[derive(Debug)]
pub(crate) struct ObservedBody {
    held: VecDeque<Bytes>,
    /// `None` once there is nothing left to read.
    upstream: Option<PooledBody>,
    silence: Silence,
    tail: Option<EventTail>,
    /// The end of a stream, until its usage is here: a client that has read it may leave at once, and its answer would be counted nowhere.
    end: Option<Bytes>,
    /// The node ended the stream with an error event, which it sends as one piece.
    failed: bool,
    good: Outcome,
    observer: Observer,
    _guard: LoadGuard,
}

/// Why an answer that is not a stream of events ended early; the client's connection is cut as ours was.
#[derive(Debug, thiserror::Error)]
#[error("the node's answer was cut: {0}")]
pub(crate) struct Cut(String);

impl ObservedBody {
    pub(super) fn new(
        held: VecDeque<Bytes>,
        upstream: PooledBody,
        streamed: bool,
        silence: Silence,
        status: u16,
        observer: Observer,
        guard: LoadGuard,
    ) -> Self {
        let mut body = Self {
            held,
            upstream: Some(upstream),
            silence,
            tail: streamed.then(EventTail::default),
            end: None,
            failed: false,
            good: Outcome::of_status(status),
            observer,
            _guard: guard,
        };
        body.notice_end();
        body
    }

    /// A length-delimited body tells its end with its last frame, and then nobody asks for another.
    fn notice_end(&mut self) {
        if self.upstream.as_ref().is_some_and(Body::is_end_stream) {
            self.finish();
        }
    }

    fn finish(&mut self) {
        self.upstream = None;
        // A node ends a stream that went well with its usage; one that ended with an error event has none.
        let metered = self.tail.is_none() || self.observer.has_usage();
        self.observer.ends(if metered { self.good } else { Outcome::Failed });
    }

    /// `None` for the end of a stream that the node has not closed yet.
    fn pass(&mut self, data: Bytes) -> Option<Frame<Bytes>> {
        self.observer.data();
        if let Some(tail) = &mut self.tail {
            tail.see(&data);
            self.failed |= data.starts_with(b"data: {\"error\"") && tail.between_events();
        }
        self.notice_end();
        let data = match self.end.take() {
            Some(end) => [end, data].concat().into(),
            None => data,
        };
        if self.upstream.is_some() && self.is_done() {
            self.silence.max = self.silence.max.min(USAGE_WAIT_MAX);
            self.end = Some(data);
            return None;
        }
        Some(Frame::data(data))
    }

    fn is_done(&self) -> bool {
        self.tail.as_ref().is_some_and(EventTail::is_done)
    }

    /// An error event in the place of the rest: a stream never looks finished when it is not. One that is, for only its usage was on its
    /// way when the node went, does not look broken either.
    fn cut(&mut self, reason: String) -> Option<Result<Frame<Bytes>, Cut>> {
        self.upstream = None;
        if self.is_done() {
            self.observer.ends(self.good);
            return self.rest();
        }
        if self.failed {
            self.observer.ends(Outcome::Failed);
            return None;
        }
        self.observer.ends(Outcome::Cut);
        match &self.tail {
            Some(tail) => Some(Ok(Frame::data(error_event(tail, &reason)))),
            None => Some(Err(Cut(reason))),
        }
    }

    fn rest(&mut self) -> Option<Result<Frame<Bytes>, Cut>> {
        self.end.take().map(|end| Ok(Frame::data(end)))
    }

    fn poll_upstream(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        loop {
            let Some(upstream) = &mut self.upstream else { return Poll::Ready(self.rest()) };
            let Poll::Ready(frame) = Pin::new(upstream).poll_frame(cx) else {
                ready!(self.silence.poll_silent(cx));
                let reason = self.silence.reason();
                return Poll::Ready(self.cut(reason));
            };
            self.silence.heard();
            if self.silence.is_overdue() {
                let reason = self.silence.reason();
                return Poll::Ready(self.cut(reason));
            }
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => {
                    if let Some(frame) = self.pass(data) {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                }
                Some(Ok(Err(frame))) => {
                    let usage = frame.trailers_ref().and_then(usage_of);
                    usage.into_iter().for_each(|usage| self.observer.usage(usage));
                }
                Some(Err(error)) => return Poll::Ready(self.cut(causes(&error))),
                None => self.finish(),
            }
        }
    }
}

impl Body for ObservedBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        while let Some(data) = self.held.pop_front() {
            if let Some(frame) = self.pass(data) {
                return Poll::Ready(Some(Ok(frame)));
            }
        }
        self.poll_upstream(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.end.is_none() && self.upstream.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let held: usize = self.held.iter().map(Bytes::len).sum();
        let rest = self.upstream.as_ref().map_or(Some(0), |upstream| upstream.size_hint().exact());
        match rest {
            Some(rest) if self.tail.is_none() => SizeHint::with_exact(held as u64 + rest),
            _ => SizeHint::default(),
        }
    }
}

fn error_event(tail: &EventTail, reason: &str) -> Bytes {
    let message = format!("the node broke off in the middle of the answer: {reason}");
    let mut event = BytesMut::new();
    if !tail.between_events() {
        event.extend_from_slice(b"\n\n");
    }
    sse::write_data(&mut event, &ApiError::new(502, "server_error", Some("stream_cut"), message).body);
    event.freeze()
}

/// The last bytes that were passed on: is an event open?
#[derive(Debug, Default)]
struct EventTail {
    last: [u8; DONE.len()],
}

/// The end of a stream of chunks.
const DONE: &[u8; 14] = b"data: [DONE]\n\n";

impl EventTail {
    fn see(&mut self, data: &[u8]) {
        let fresh = &data[data.len().saturating_sub(self.last.len())..];
        self.last.copy_within(fresh.len().., 0);
        self.last[DONE.len() - fresh.len()..].copy_from_slice(fresh);
    }

    fn between_events(&self) -> bool {
        self.last == [0; DONE.len()] || self.last.ends_with(b"\n\n") || self.last.ends_with(b"\r\n\r\n")
    }

    fn is_done(&self) -> bool {
        self.last == *DONE
    }
}

/// The longest silence, and the end of all patience. Silence is measured only while the client waits for us, so a slow reader is not
/// taken for a dead node.
#[derive(Debug)]
pub(crate) struct Silence {
    max: Duration,
    deadline: Instant,
    timer: Pin<Box<Sleep>>,
    silent: bool,
}

impl Silence {
    pub(super) fn new(max: Duration, deadline: Instant) -> Self {
        Self { max, deadline, timer: Box::pin(tokio::time::sleep(max)), silent: false }
    }

    fn heard(&mut self) {
        self.silent = false;
    }

    fn is_overdue(&self) -> bool {
        Instant::now() >= self.deadline
    }

    fn reason(&self) -> String {
        match self.is_overdue() {
            true => "the request took longer than total_ms_max allows".into(),
            false => format!("it said nothing for {:?}", self.max),
        }
    }

    fn poll_silent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.silent {
            self.silent = true;
            let until = self.deadline.min(Instant::now() + self.max);
            self.timer.as_mut().reset(until);
        }
        self.timer.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_knows_the_end_whatever_the_chunking() {
        for at in 0..=DONE.len() {
            let mut tail = EventTail::default();
            [b"data: {}\n\n", &DONE[..at], &DONE[at..]].iter().for_each(|chunk| tail.see(chunk));
            assert!(tail.is_done() && tail.between_events(), "cut at {at}");
        }
    }

    #[test]
    fn the_tail_knows_whether_an_event_is_open_whatever_the_chunking() {
        let cases: &[(&[&str], bool)] = &[
            (&[], true),
            (&["data: {}\n\n"], true),
            (&["data: {}\n", "\n"], true),
            (&["data: {}\r\n\r", "\n"], true),
            (&["data: {}\n"], false),
            (&["data: {}\n\n", "d"], false),
            (&["data: {}\r\n"], false),
            (&["data: {}\n\n", ": ping\n\n"], true),
        ];
        for (chunks, between) in cases {
            let mut tail = EventTail::default();
            chunks.iter().for_each(|chunk| tail.see(chunk.as_bytes()));
            assert_eq!(tail.between_events(), *between, "{chunks:?}");
            assert!(!tail.is_done(), "{chunks:?}");
        }
    }
}
