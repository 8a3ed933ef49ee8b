//! What is looked at before a request takes its route.

pub(crate) mod auth;
pub(crate) mod cors;
pub(crate) mod request_log;
