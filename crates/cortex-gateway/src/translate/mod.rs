//! Other dialects than that of the nodes, OpenAI's chat: their requests on the way there, the answers on the way back. Nothing else knows two
//! dialects, and nothing here performs I/O.

mod chunk;
pub(crate) mod error;
mod python_json;
pub(crate) mod request;
pub(crate) mod response;
pub(crate) mod responses;
pub(crate) mod stream;

#[cfg(test)]
mod broken;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod transcript;

use bytes::BytesMut;

pub(crate) use request::{Asked, Chat};
pub(crate) use stream::StreamTranslator;

/// A node's stream in another dialect: bytes in, cut anywhere, bytes out.
pub(crate) trait Translator: Send + 'static {
    /// Appends what `bytes` of the node's stream mean to `out`.
    fn push(&mut self, bytes: &[u8], out: &mut BytesMut);
    /// The node's stream is over. One that did not say so was cut, and must not look finished.
    fn end(&mut self, out: &mut BytesMut);
    /// The node's stream cannot be read on. Nothing follows an end or another error.
    fn cut(&mut self, reason: &str, out: &mut BytesMut);
    /// Appends a sign of life.
    fn ping(&self, out: &mut BytesMut);
}
