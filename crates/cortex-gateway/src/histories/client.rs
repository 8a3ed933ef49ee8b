//! A client in the gateway's own process: it asks, reads, perhaps leaves, and says how it ended.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use http::header::CONTENT_TYPE;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::plan::Ask;
use crate::front::Front;

/// Asks, and tells in one word how it went: `ok`, `left`, `503:code`, `event:code`; anything with a `!` is against the rules.
pub(super) async fn ask(gateway: Arc<Front>, ask: Ask) -> String {
    let reading = answer(&gateway, &ask);
    match ask.leaves {
        None => reading.await,
        Some(patience) => tokio::time::timeout(patience, reading).await.unwrap_or_else(|_| "left".into()),
    }
}

async fn answer(gateway: &Front, ask: &Ask) -> String {
    let text = "word ".repeat(ask.tokens as usize);
    let body = match ask.path {
        "/v1/responses" => json!({ "model": ask.model, "input": text, "stream": ask.stream }),
        "/v1/messages" => {
            json!({ "model": ask.model, "max_tokens": 1000, "messages": [{ "role": "user", "content": text }], "stream": ask.stream })
        }
        _ => json!({ "model": ask.model, "messages": [{ "role": "user", "content": text }], "stream": ask.stream }),
    };
    let mut request = Request::new(Body::from(body.to_string()));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = ask.path.parse().unwrap();
    request.headers_mut().insert(CONTENT_TYPE, "application/json".parse().unwrap());
    let answer = gateway.clone().oneshot(request).await.unwrap_or_else(|never| match never {});
    let (head, body) = answer.into_parts();
    let streamed = head.headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    let whole = body.collect().await.map(http_body_util::Collected::to_bytes);
    match whole {
        Err(_) if head.status.is_success() && !streamed => "cut".into(), // the client's connection is cut as the node's was
        Err(error) => format!("! {} and a broken body: {error}", head.status),
        Ok(body) if streamed => stream_end(ask.path, &String::from_utf8_lossy(&body)),
        Ok(body) => match serde_json::from_slice::<Value>(&body) {
            Ok(json) if head.status.is_success() && json.get("error").is_none_or(Value::is_null) => "ok".into(),
            Ok(json) => format!("{}:{}", head.status.as_u16(), code(&json)),
            Err(error) => format!("! {} and no JSON: {error}", head.status),
        },
    }
}

/// OpenAI's errors have a code, Anthropic's a type.
fn code(json: &Value) -> String {
    let error = &json["error"];
    error["code"].as_str().or(error["type"].as_str()).unwrap_or("!no code").to_owned()
}

/// A stream ends with its dialect's end, or with an error event, and never with both or neither.
fn stream_end(path: &str, text: &str) -> String {
    let events: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let json = |event: &&str| serde_json::from_str::<Value>(event).unwrap_or_default();
    let typed = |event: &str, kind: &str| json(&event)["type"] == kind;
    let finished = |event: &&str| match path {
        "/v1/messages" => typed(event, "message_stop"),
        "/v1/responses" => typed(event, "response.completed") || typed(event, "response.incomplete"),
        _ => *event == "[DONE]",
    };
    let failed = |event: &&str| match path {
        "/v1/responses" => typed(event, "response.failed") || typed(event, "error"),
        _ => json(event).get("error").is_some(),
    };
    let ends: Vec<&&str> = events.iter().filter(|event| finished(event) || failed(event)).collect();
    match ends.as_slice() {
        [end] if Some(end) != events.last().as_ref() => format!("! something follows the end: {text}"),
        [end] if finished(end) => "ok".into(),
        [end] => {
            let event = json(end);
            let inner = if event["response"].is_object() { &event["response"] } else { &event };
            format!("event:{}", code(inner))
        }
        ends => format!("! {} ends: {text}", ends.len()),
    }
}
