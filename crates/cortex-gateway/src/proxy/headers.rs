//! Which headers cross the gateway.

use cortex_core::headers::{REQUEST_ID, USAGE};
use http::header::{ACCEPT, CONNECTION, CONTENT_TYPE, PROXY_AUTHENTICATE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Everything else that a client sends ends here: credentials, cookies, and whatever would pose as one of ours.
const TO_NODE: [HeaderName; 5] =
    [ACCEPT, CONTENT_TYPE, USER_AGENT, HeaderName::from_static("traceparent"), HeaderName::from_static("tracestate")];

/// Hop-by-hop headers, and those that only the gateway should see.
const NOT_TO_CLIENT: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static(USAGE),
];

/// What the node gets to see of a client's headers, and the request's id.
pub(crate) fn client_headers(from: &HeaderMap, request_id: &str) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(TO_NODE.len() + 3);
    for name in TO_NODE {
        if let Some(value) = from.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    if let Ok(value) = HeaderValue::from_str(request_id) {
        headers.insert(HeaderName::from_static(REQUEST_ID), value);
    }
    headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(CONNECTION, HeaderValue::from_static("te"));
    headers
}

/// Takes out of a node's answer what is not for the client.
pub(super) fn strip_answer(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok()).flat_map(names).collect();
    for name in named.iter().chain(&NOT_TO_CLIENT) {
        headers.remove(name);
    }
}

fn names(list: &str) -> Vec<HeaderName> {
    list.split(',').filter_map(|name| name.trim().parse().ok()).collect()
}

pub(crate) fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}
