//! Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

use serde::{Deserialize, Serialize};

use crate::harness::HarnessError;

/// An error with its HTTP status beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: u16,
    /// What the client reads.
    pub body: ErrorBody,
    /// Seconds for `Retry-After`, where coming back helps.
    pub retry_after_s: Option<u64>,
}

/// The JSON body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The one field.
    pub error: ErrorDetail,
}

/// What is inside `error`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// What is wrong and what to do.
    pub message: String,
    /// The family: `invalid_request_error`, `rate_limit_error`, `server_error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The field at fault.
    pub param: Option<String>,
    /// A word for programs: `model_not_found`.
    pub code: Option<String>,
}

impl ErrorDetail {
    /// Tokens of the prompt, and of the context that they do not fit; `None` for any other error. The words are those of
    /// [`HarnessError::ContextLength`].
    pub fn context_overflow(&self) -> Option<(usize, usize)> {
        let is_overflow = self.code.as_deref() == Some("context_length_exceeded");
        let mut numbers = self.message.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok());
        is_overflow.then(|| Some((numbers.next()?, numbers.next()?))).flatten()
    }
}

impl ApiError {
    /// An error of `kind` with `code`.
    pub fn new(status: u16, kind: &str, code: Option<&str>, message: impl Into<String>) -> Self {
        Self {
            status,
            body: ErrorBody { error: ErrorDetail { message: message.into(), kind: kind.into(), param: None, code: code.map(Into::into) } },
            retry_after_s: None,
        }
    }

    /// A 400 about the request.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(400, "invalid_request_error", None, message)
    }

    /// A 404 for a model that nobody serves.
    pub fn model_not_found(id: &str) -> Self {
        let message = format!("The model `{id}` does not exist or is not served here. GET /v1/models lists what is.");
        Self::new(404, "invalid_request_error", Some("model_not_found"), message).with_param("model")
    }

    /// Names the field at fault.
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.body.error.param = Some(param.into());
        self
    }

    /// Adds `Retry-After`.
    pub fn with_retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }
}

impl From<HarnessError> for ApiError {
    fn from(error: HarnessError) -> Self {
        let message = error.to_string();
        match error {
            HarnessError::ModelNotFound(id) => Self::model_not_found(id.as_str()),
            HarnessError::ModelNotLoaded(_) => Self::new(503, "server_error", Some("model_not_loaded"), message).with_retry_after(1),
            HarnessError::InvalidRequest { param, .. } => {
                let error = Self::invalid(message);
                match param {
                    Some(param) => error.with_param(param),
                    None => error,
                }
            }
            HarnessError::ContextLength { .. } => {
                Self::new(400, "invalid_request_error", Some("context_length_exceeded"), message).with_param("messages")
            }
            HarnessError::Overloaded { retry_after_s, .. } => {
                Self::new(429, "rate_limit_error", Some("overloaded"), message).with_retry_after(retry_after_s)
            }
            HarnessError::CannotLoad { .. } => Self::new(500, "server_error", Some("cannot_load"), message),
            HarnessError::StaleGeneration { .. } => Self::new(409, "invalid_request_error", Some("stale_generation"), message),
            HarnessError::ShuttingDown => Self::new(503, "server_error", Some("shutting_down"), message).with_retry_after(1),
            HarnessError::DeviceFailed { retry_after_s, .. } => {
                Self::new(503, "server_error", Some("device_failed"), message).with_retry_after(retry_after_s)
            }
            HarnessError::Internal(_) => Self::new(500, "server_error", Some("internal_error"), message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overflow_can_be_read_back() {
        let error = ApiError::from(HarnessError::ContextLength { prompt_tokens: 5_000, context: 4_096 });
        assert_eq!(error.body.error.context_overflow(), Some((5_000, 4_096)));
        assert_eq!(ApiError::invalid("1 2").body.error.context_overflow(), None);
    }
}
