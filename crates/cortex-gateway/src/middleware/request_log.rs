//! `x-request-id`: taken from the client or drawn here; on every answer, towards the node and in every log line.

use axum::extract::Request;
use axum::http::HeaderValue;
use axum::response::Response;
use cortex_core::headers::{REQUEST_ID, is_request_id};

/// The id of the request at hand.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub(crate) String);

impl RequestId {
    pub(crate) fn of(request: &Request) -> String {
        request.extensions().get::<Self>().map(|id| id.0.clone()).unwrap_or_default()
    }

    /// The client's own, or a new one; handlers find it with [`RequestId::of`].
    pub(crate) fn attach(request: &mut Request) -> Self {
        let drawn = || uuid::Uuid::new_v4().simple().to_string();
        let id = Self(request.headers().get(REQUEST_ID).and_then(accepted).unwrap_or_else(drawn));
        request.extensions_mut().insert(id.clone());
        id
    }

    pub(crate) fn show(&self, response: &mut Response) {
        if let Ok(value) = HeaderValue::from_str(&self.0) {
            response.headers_mut().insert(REQUEST_ID, value);
        }
    }
}

fn accepted(value: &HeaderValue) -> Option<String> {
    value.to_str().ok().filter(|id| is_request_id(id)).map(str::to_owned)
}
