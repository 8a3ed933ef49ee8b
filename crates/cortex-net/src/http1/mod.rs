//! Requests and their answers over one connection of HTTP/1.1 (RFC 9112), as a client.
//!
//! A connection has no task of its own: whoever waits for an answer polls the connection. It holds no buffer either, only what was read and not
//! yet taken; what is read at once is read into the caller's stack.

mod framing;
mod head;

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::{Request, Response, StatusCode};
use hyper::body::Frame;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_write_buf;

use crate::wire::Wire;

pub(crate) use framing::Framing;

/// What is read at once.
const READ_BYTES: usize = 16 << 10;

/// Why an answer does not come, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// The server closed the connection too early.
    #[error("the connection was closed before the answer was whole")]
    CutShort,
    /// What came is not HTTP/1.1.
    #[error("the answer is not HTTP/1.1: {0}")]
    Malformed(&'static str),
}

impl AnswerError {
    /// The server closed it, or had done so before, under TLS maybe without a word; a host that is gone closes nothing.
    pub(crate) fn is_a_closed_connection(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        match self {
            Self::Io(error) => matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof),
            Self::CutShort => true,
            Self::Malformed(_) => false,
        }
    }
}

/// A connection, and what came over it that nobody has taken yet.
#[derive(Debug)]
pub(crate) struct Connection {
    wire: Wire,
    read: BytesMut,
    /// After the answer at hand another request can follow.
    persists: bool,
    /// Nothing came since the last request.
    silent: bool,
}

impl Connection {
    pub(crate) fn new(wire: Wire) -> Self {
        Self { wire, read: BytesMut::new(), persists: true, silent: true }
    }

    /// Sends `request`, whose URI is a path, and reads the head of its answer. An answer may come before the request was sent whole: it counts,
    /// and the connection is good for nothing else then.
    pub(crate) async fn exchange(&mut self, request: &Request<Bytes>) -> Result<(Response<()>, Framing), AnswerError> {
        let head = head::written(request);
        let mut unsent = Buf::chain(head.as_slice(), request.body().as_ref());
        let mut broken = None;
        self.silent = true;
        poll_fn(|cx| {
            if broken.is_none()
                && let Poll::Ready(Err(error)) = self.poll_send(cx, &mut unsent)
            {
                broken = Some(error); // what the server said before may still be there to read
            }
            let (head, persists) = match ready!(self.poll_head(cx)) {
                Ok(head) => head,
                Err(AnswerError::CutShort) => return Poll::Ready(Err(broken.take().map_or(AnswerError::CutShort, AnswerError::Io))),
                Err(error) => return Poll::Ready(Err(error)),
            };
            self.persists = persists && broken.is_none() && !unsent.has_remaining();
            let framing = Framing::of(&head)?;
            Poll::Ready(Ok((head, framing)))
        })
        .await
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, unsent: &mut impl Buf) -> Poll<io::Result<()>> {
        while unsent.has_remaining() {
            if ready!(poll_write_buf(Pin::new(&mut self.wire), cx, unsent))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
        }
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    /// The head, and whether the server keeps the connection. Interim answers (1xx) are passed over.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Response<()>, bool), AnswerError>> {
        loop {
            match head::read(&mut self.read)? {
                Some((head, _)) if head.status() == StatusCode::SWITCHING_PROTOCOLS => {
                    return Poll::Ready(Err(AnswerError::Malformed("it changes the protocol unasked")));
                }
                Some((head, _)) if head.status().is_informational() => {}
                Some(head) => return Poll::Ready(Ok(head)),
                None if ready!(self.poll_read(cx))? == 0 => return Poll::Ready(Err(AnswerError::CutShort)),
                None => {}
            }
        }
    }

    /// The next frame of a body; `None` at its end.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>, framing: &mut Framing) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        loop {
            match framing.take(&mut self.read) {
                Ok(None) if framing.is_done() => return Poll::Ready(None),
                Ok(None) => {}
                taken => return Poll::Ready(taken.transpose()),
            }
            match ready!(self.poll_read(cx)) {
                Ok(0) if framing.ends_with_connection() => return Poll::Ready(None),
                Ok(0) => return Poll::Ready(Some(Err(AnswerError::CutShort))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
    }

    /// How many bytes came; 0 at the end.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut room = [MaybeUninit::uninit(); READ_BYTES];
        let mut room = ReadBuf::uninit(&mut room);
        ready!(Pin::new(&mut self.wire).poll_read(cx, &mut room))?;
        match self.read.is_empty() {
            // Not within what is shared with frames that were taken: they would keep it alive.
            true => self.read = BytesMut::from(room.filled()),
            false => self.read.extend_from_slice(room.filled()),
        }
        self.silent &= room.filled().is_empty();
        Poll::Ready(Ok(room.filled().len()))
    }

    /// After an exchange that failed: whether no part of an answer came.
    pub(crate) fn has_been_silent(&self) -> bool {
        self.silent
    }

    /// Whether it can be used once more, as far as is known: the answer was whole, and nothing came after it.
    pub(crate) fn is_idle(&mut self) -> bool {
        self.persists && self.read.is_empty() && self.poll_read(&mut Context::from_waker(Waker::noop())).is_pending()
    }
}
