//! The head of a request as it is written, and of an answer as it is read.

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Version};
use httparse::{EMPTY_HEADER, Header, Status};

use super::AnswerError;

/// Longest head of an answer.
const BYTES_MAX: usize = 64 << 10;
/// Most headers of an answer, and of its trailers.
pub(super) const HEADERS_MAX: usize = 100;

/// The body's length is told, so that the server knows where the next request begins.
pub(super) fn written(request: &Request<Bytes>) -> Vec<u8> {
    let mut head = Vec::with_capacity(512);
    let mut line = |parts: [&[u8]; 4]| parts.iter().for_each(|part| head.extend_from_slice(part));
    line([
        request.method().as_str().as_bytes(),
        b" ",
        request.uri().path_and_query().map_or("/", |path| path.as_str()).as_bytes(),
        b" HTTP/1.1\r\n",
    ]);
    for (name, value) in request.headers().iter().filter(|(name, _)| ![CONTENT_LENGTH, TRANSFER_ENCODING].contains(name)) {
        line([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
    }
    line([b"content-length: ", request.body().len().to_string().as_bytes(), b"\r\n", b"\r\n"]);
    head
}

/// Takes a whole head out of `read`, and tells whether the connection outlives its answer; `None`: there is more to come.
pub(super) fn read(read: &mut BytesMut) -> Result<Option<(Response<()>, bool)>, AnswerError> {
    if read.is_empty() {
        return Ok(None);
    }
    let mut room = [EMPTY_HEADER; HEADERS_MAX];
    let mut seen = httparse::Response::new(&mut room);
    let length = match seen.parse(read) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) if read.len() < BYTES_MAX => return Ok(None),
        Ok(Status::Partial) => return Err(AnswerError::Malformed("its head is too long")),
        Err(_) => return Err(AnswerError::Malformed("its head cannot be read")),
    };
    let mut head = Response::new(());
    *head.status_mut() = seen.code.and_then(|code| code.try_into().ok()).ok_or(AnswerError::Malformed("its status is none"))?;
    *head.version_mut() = if seen.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    *head.headers_mut() = headers(seen.headers)?;
    read.advance(length);
    let persists = head.version() == Version::HTTP_11 && !says_close(head.headers());
    Ok(Some((head, persists)))
}

pub(super) fn headers(seen: &[Header<'_>]) -> Result<HeaderMap, AnswerError> {
    let wrong = || AnswerError::Malformed("a header cannot be read");
    let mut headers = HeaderMap::with_capacity(seen.len());
    for header in seen {
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| wrong())?;
        headers.append(name, HeaderValue::from_bytes(header.value).map_err(|_| wrong())?);
    }
    Ok(headers)
}

fn says_close(headers: &HeaderMap) -> bool {
    let options = headers.get_all(CONNECTION).into_iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    options.into_iter().any(|option| option.trim().eq_ignore_ascii_case("close"))
}
