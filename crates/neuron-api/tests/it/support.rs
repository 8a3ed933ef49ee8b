//! The one place where tests touch the router: a request in, status, headers and text out.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use neuron_api::mock::{MockConfig, MockModel, MockNeuron};
use neuron_api::{ApiLimits, router};
use serde_json::Value;
use tower::ServiceExt;

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub(crate) fn error(&self) -> Value {
        self.json()["error"].clone()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The text with the only thing that differs from run to run made constant.
    pub(crate) fn golden(&self) -> String {
        let mut parts = self.text.split("\"created\":");
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |text, part| text + "\"created\":0" + part.trim_start_matches(|c: char| c.is_ascii_digit()))
    }
}

/// A node with one model, `m`, that says `Hello`, ` world`, `!`.
pub(crate) fn talker() -> MockNeuron {
    MockNeuron::new(MockConfig::new([hello()]))
}

pub(crate) fn hello() -> MockModel {
    MockModel::loaded("m").saying(["Hello", " world", "!"])
}

pub(crate) fn post(path: &str, body: impl ToString) -> Request<Body> {
    Request::post(path).header("x-request-id", "r-1").body(Body::from(body.to_string())).unwrap()
}

pub(crate) fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

/// `base` with `fields` added or replaced.
pub(crate) fn with(mut base: Value, fields: Value) -> Value {
    base.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    base
}

pub(crate) async fn open(mock: &MockNeuron, request: Request<Body>) -> Response<Body> {
    open_with(mock, ApiLimits::default(), request).await
}

pub(crate) async fn open_with(mock: &MockNeuron, limits: ApiLimits, request: Request<Body>) -> Response<Body> {
    router(Arc::new(mock.clone()), limits).oneshot(request).await.unwrap()
}

pub(crate) async fn send(mock: &MockNeuron, request: Request<Body>) -> Answer {
    read(open(mock, request).await).await
}

pub(crate) async fn read(response: Response<Body>) -> Answer {
    let (parts, body) = response.into_parts();
    let collected = body.collect().await.unwrap();
    let trailers = collected.trailers().cloned();
    let text = String::from_utf8(collected.to_bytes().to_vec()).unwrap();
    Answer { status: parts.status, headers: parts.headers, text, trailers }
}
