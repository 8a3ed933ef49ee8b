//! What surrounds every handler.

pub(crate) mod auth;
pub(crate) mod cors;
pub(crate) mod request_log;
