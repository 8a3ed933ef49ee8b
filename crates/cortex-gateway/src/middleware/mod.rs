//! What surrounds every handler.

pub(crate) mod request_log;
