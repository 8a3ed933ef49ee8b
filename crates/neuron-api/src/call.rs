//! What a handler takes from a request: its JSON body as [`Fields`], and the [`Call`] around it.

use std::convert::Infallible;

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::{CONTENT_LENGTH, TE};
use axum::http::request::Parts;
use axum::response::Response;
use bytes::Bytes;
use cortex_core::openai::{ApiError, Fields};
use cortex_core::{Usage, headers};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use crate::Api;
use crate::error::Failure;
use crate::request_id::RequestId;

/// The circumstances of a request.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) request_id: String,
    /// The caller understands trailers and so wants [`headers::USAGE`].
    pub(crate) wants_usage: bool,
}

impl<S: Sync> FromRequestParts<S> for Call {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let request_id = parts.extensions.get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default();
        let trailers = |te: &str| te.split(',').any(|coding| coding.trim().eq_ignore_ascii_case("trailers"));
        let wants_usage = parts.headers.get_all(TE).iter().any(|te| te.to_str().is_ok_and(trailers));
        Ok(Self { request_id, wants_usage })
    }
}

impl Call {
    /// Adds [`headers::USAGE`] to a whole answer, if the caller wants it.
    pub(crate) fn report_usage(&self, response: &mut Response, usage: &Usage) {
        if let (true, Ok(value)) = (self.wants_usage, headers::encode_usage(usage).parse()) {
            response.headers_mut().insert(headers::USAGE, value);
        }
    }
}

/// A JSON object as the body, whatever `content-type` says: `curl -d` sends a form's.
pub(crate) struct JsonFields(pub(crate) Fields);

impl FromRequest<Api> for JsonFields {
    type Rejection = Failure;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Failure> {
        let body = tokio::time::timeout(api.limits.body_wait_max, read_body(request, api.limits.body_bytes_max)).await;
        let body =
            body.map_err(|_| ApiError::new(408, "invalid_request_error", Some("body_timeout"), "The body did not arrive in time."))?;
        Ok(Self(Fields::parse(&body?)?))
    }
}

async fn read_body(request: Request, bytes_max: usize) -> Result<Bytes, ApiError> {
    let too_large = || {
        let message = format!("The body is larger than {bytes_max} bytes.");
        ApiError::new(413, "invalid_request_error", Some("request_too_large"), message)
    };
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > bytes_max as u64) {
        return Err(too_large());
    }
    match Limited::new(request.into_body(), bytes_max).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(error) => Err(ApiError::invalid(format!("The body could not be read: {error}."))),
    }
}
