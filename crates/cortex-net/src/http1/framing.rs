//! Where the body of an answer ends (RFC 9112, section 6.3), and what of it has come.

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{Response, StatusCode, Version};
use httparse::{EMPTY_HEADER, Status};
use hyper::body::Frame;

use super::{AnswerError, head};

/// Longest line with a chunk's size and its extensions.
const SIZE_LINE_MAX: usize = 256;
/// Longest trailers.
const TRAILERS_MAX: usize = 16 << 10;

/// What is still to come of a body.
#[derive(Debug)]
pub(crate) enum Framing {
    /// So many bytes.
    Length(u64),
    Chunked(Chunk),
    /// Whatever comes until the connection ends.
    UntilClose,
    Done,
}

/// What is still to come of a chunk.
#[derive(Debug)]
pub(crate) enum Chunk {
    Size,
    /// So many bytes, and the end of their line.
    Data(u64),
    LineEnd,
    /// After the last chunk.
    Trailers,
}

impl Framing {
    /// That of a request other than HEAD. An answer whose length is told twice, in two ways, is refused: who counts otherwise would see
    /// another answer in it.
    pub(super) fn of(answer: &Response<()>) -> Result<Self, AnswerError> {
        if matches!(answer.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            return Ok(Self::Done);
        }
        let mut codings = answer.headers().get_all(TRANSFER_ENCODING).iter();
        let mut lengths = answer.headers().get_all(CONTENT_LENGTH).iter();
        match (codings.next(), lengths.next()) {
            (None, None) => Ok(Self::UntilClose),
            (Some(_), _) if answer.version() == Version::HTTP_10 => Err(AnswerError::Malformed("it is chunked as HTTP/1.0 cannot be")),
            (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") && codings.next().is_none() => {
                Ok(Self::Chunked(Chunk::Size))
            }
            (None, Some(length)) if lengths.all(|other| other == length) => match decimal(length.as_bytes()) {
                Some(0) => Ok(Self::Done),
                Some(length) => Ok(Self::Length(length)),
                None => Err(AnswerError::Malformed("its content-length is no number")),
            },
            (Some(_), None) => Err(AnswerError::Malformed("its transfer-encoding is not `chunked`")),
            _ => Err(AnswerError::Malformed("its length is told twice")),
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    pub(super) fn ends_with_connection(&self) -> bool {
        matches!(self, Self::UntilClose)
    }

    /// Bytes to come, where that is known.
    pub(crate) fn rest(&self) -> Option<u64> {
        match self {
            Self::Length(rest) => Some(*rest),
            Self::Done => Some(0),
            Self::Chunked(_) | Self::UntilClose => None,
        }
    }

    /// Takes the next frame out of `read`; `None` when it holds none, or at the end. What comes in one chunk and in one read is one frame.
    pub(super) fn take(&mut self, read: &mut BytesMut) -> Result<Option<Frame<Bytes>>, AnswerError> {
        loop {
            match self {
                Self::Done => return Ok(None),
                _ if read.is_empty() => return Ok(None),
                Self::UntilClose => return Ok(Some(Frame::data(read.split().freeze()))),
                Self::Length(rest) => {
                    let data = up_to(read, rest);
                    if *rest == 0 {
                        *self = Self::Done;
                    }
                    return Ok(Some(Frame::data(data)));
                }
                Self::Chunked(Chunk::Data(rest)) => {
                    let data = up_to(read, rest);
                    if *rest == 0 {
                        *self = Self::Chunked(Chunk::LineEnd);
                    }
                    return Ok(Some(Frame::data(data)));
                }
                Self::Chunked(Chunk::LineEnd) => match &read[..] {
                    [b'\r', b'\n', ..] => {
                        read.advance(2);
                        *self = Self::Chunked(Chunk::Size);
                    }
                    b"\r" => return Ok(None),
                    _ => return Err(AnswerError::Malformed("a chunk does not end where it should")),
                },
                Self::Chunked(Chunk::Size) => match read.windows(2).take(SIZE_LINE_MAX).position(|end| end == b"\r\n") {
                    Some(length) => {
                        let size = size(&read[..length]).ok_or(AnswerError::Malformed("a chunk's size is no number"))?;
                        read.advance(length + 2);
                        *self = Self::Chunked(if size == 0 { Chunk::Trailers } else { Chunk::Data(size) });
                    }
                    None if read.len() < SIZE_LINE_MAX => return Ok(None),
                    None => return Err(AnswerError::Malformed("a chunk's size has no end")),
                },
                Self::Chunked(Chunk::Trailers) => {
                    let mut room = [EMPTY_HEADER; head::HEADERS_MAX];
                    let (length, trailers) = match httparse::parse_headers(read, &mut room) {
                        Ok(Status::Complete((length, seen))) if lines_are_whole(&read[..length]) => (length, head::headers(seen)?),
                        Ok(Status::Partial) if read.len() < TRAILERS_MAX => return Ok(None),
                        _ => return Err(AnswerError::Malformed("its trailers cannot be read")),
                    };
                    read.advance(length);
                    *self = Self::Done;
                    return Ok((!trailers.is_empty()).then(|| Frame::trailers(trailers)));
                }
            }
        }
    }
}

/// What there is of `rest` bytes.
fn up_to(read: &mut BytesMut, rest: &mut u64) -> Bytes {
    let length = usize::try_from(*rest).map_or(read.len(), |rest| rest.min(read.len()));
    *rest -= length as u64;
    read.split_to(length).freeze()
}

/// A line feed alone ends no line of a chunked body, though the parser lets it.
fn lines_are_whole(text: &[u8]) -> bool {
    text.split_inclusive(|&byte| byte == b'\n').all(|line| line.ends_with(b"\r\n"))
}

/// Of a chunk, in hexadecimal digits; extensions say nothing to us.
fn size(line: &[u8]) -> Option<u64> {
    let line = std::str::from_utf8(line).ok().filter(|line| !line.contains(['\r', '\n']))?;
    let digits = line.split_once(';').map_or(line, |(digits, _)| digits).trim_end_matches([' ', '\t']);
    digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

/// Digits alone: no sign, no blank.
fn decimal(text: &[u8]) -> Option<u64> {
    text.iter().all(u8::is_ascii_digit).then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}
