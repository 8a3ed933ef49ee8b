//! Errors in Anthropic's shape: `{"type": "error", "error": {"type", "message"}, "request_id"}`.

use serde::{Deserialize, Serialize};

/// The families of errors, each with its own status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The request is at fault.
    #[serde(rename = "invalid_request_error")]
    InvalidRequest,
    /// Who are you?
    #[serde(rename = "authentication_error")]
    Authentication,
    /// You may not.
    #[serde(rename = "permission_error")]
    Permission,
    /// No such thing.
    #[serde(rename = "not_found_error")]
    NotFound,
    /// Too many bytes.
    #[serde(rename = "request_too_large")]
    RequestTooLarge,
    /// Too many requests of this client.
    #[serde(rename = "rate_limit_error")]
    RateLimit,
    /// The server is at fault.
    #[serde(rename = "api_error")]
    Api,
    /// The server is busy with others, or still loading.
    #[serde(rename = "overloaded_error")]
    Overloaded,
}

impl ErrorKind {
    /// The HTTP status that goes with it.
    pub const fn status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::Authentication => 401,
            Self::Permission => 403,
            Self::NotFound => 404,
            Self::RequestTooLarge => 413,
            Self::RateLimit => 429,
            Self::Api => 500,
            Self::Overloaded => 529,
        }
    }
}

/// The JSON body of an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorAnswer {
    /// Always `error`.
    #[serde(rename = "type")]
    pub kind: ErrorWord,
    /// What is wrong.
    pub error: ErrorDetail,
    /// The request.
    pub request_id: Option<String>,
}

/// The word in `type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorWord {
    /// The only one.
    #[default]
    Error,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// The family.
    #[serde(rename = "type")]
    pub kind: ErrorKind,
    /// In words.
    pub message: String,
}

impl ErrorDetail {
    /// As it answers the request `request_id`.
    pub fn answer(self, request_id: &str) -> ErrorAnswer {
        ErrorAnswer { kind: ErrorWord::Error, error: self, request_id: Some(request_id.into()) }
    }
}
