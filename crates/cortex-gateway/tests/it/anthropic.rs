//! Clients of Anthropic's dialect, over real sockets.

use axum::body::Body;
use axum::response::Response;
use cortex_core::Placement;
use cortex_core::config::Millis;
use http::{HeaderMap, HeaderValue, Method};
use http_body_util::BodyExt;
use neuron_api::mock::{Faults, MockModel};
use serde_json::{Value, json};

use crate::rig::{RawNode, Reply, Rig, TestClient, in_front_of, until};

fn ask(model: &str, text: &str) -> Value {
    json!({ "model": model, "max_tokens": 100, "messages": [{ "role": "user", "content": text }] })
}

fn streamed(model: &str, text: &str) -> Value {
    let mut body = ask(model, text);
    body["stream"] = true.into();
    body
}

async fn messages(client: &TestClient, body: &Value) -> Reply {
    client.post("/v1/messages?beta=true", body).await
}

/// The events of a stream, pings left out; each name must be its event's type.
fn events(text: &str) -> Vec<Value> {
    let event = |block: &str| {
        let (name, data) = block.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["type"], name);
        data
    };
    text.split("\n\n").filter(|block| !block.is_empty()).map(event).filter(|event| event["type"] != "ping").collect()
}

fn types(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_stream_and_a_whole_answer_say_the_same_and_count_the_same() {
    let mut model = MockModel::loaded("org/m").saying(["Hel", "lo ", "wörld"]);
    model.cached_tokens = 4;
    let rig = Rig::with([vec![model]], |config| config.placement = Placement::new([], [("fast".to_owned(), "org/m".into())].into())).await;
    let client = rig.client();
    let whole = messages(&client, &ask("fast", "Hi")).await;
    assert_eq!(whole.status, 200, "{}", whole.text());
    assert_eq!(whole.headers["request-id"], whole.headers["x-request-id"]);
    let whole = whole.json();
    assert_eq!(whole["content"], json!([{ "type": "text", "text": "Hello wörld" }]));
    assert_eq!((&whole["type"], &whole["model"], &whole["stop_reason"]), (&json!("message"), &json!("fast"), &json!("end_turn")));
    assert!(whole["id"].as_str().unwrap().starts_with("msg_"));
    assert_eq!((&whole["usage"]["cache_read_input_tokens"], &whole["usage"]["output_tokens"]), (&json!(4), &json!(3)));

    let reply = messages(&client, &streamed("fast", "Hi")).await;
    assert_eq!(reply.headers["content-type"], "text/event-stream");
    let events = events(&reply.text());
    let delta = "content_block_delta";
    let expected = ["message_start", "content_block_start", delta, delta, delta, "content_block_stop", "message_delta", "message_stop"];
    assert_eq!(types(&events), expected);
    let said: String = events.iter().filter_map(|event| event["delta"]["text"].as_str()).collect();
    assert_eq!(said, "Hello wörld");
    assert_eq!(events[6]["usage"], whole["usage"]);
    let start = &events[0]["message"];
    assert_eq!((&start["usage"]["output_tokens"], &start["stop_reason"], &start["content"]), (&json!(0), &Value::Null, &json!([])));

    let counted = client.post("/v1/messages/count_tokens?beta=true", &ask("fast", "Hi")).await.json();
    assert_eq!(counted, json!({ "input_tokens": whole["usage"]["input_tokens"] }));
    assert_eq!(counted["input_tokens"], start["usage"]["input_tokens"]);
    until(async || rig.in_flight() == 0).await;
    let ok = "cortex_requests_total{endpoint=\"/v1/messages\",model=\"org/m\",node=\"a\",outcome=\"ok\"}";
    until(async || rig.metric(ok).await == Some(2.0)).await;
}

#[tokio::test]
async fn a_client_that_marks_its_cache_adds_the_parts_itself() {
    let mut model = MockModel::loaded("m");
    model.cached_tokens = 4;
    let rig = Rig::start([vec![model]]).await;
    let mut body = ask("m", "Hi");
    let plain = messages(&rig.client(), &body).await.json()["usage"]["input_tokens"].as_u64().unwrap();
    body["messages"][0]["content"] = json!([{ "type": "text", "text": "Hi", "cache_control": { "type": "ephemeral" } }]);
    let usage = messages(&rig.client(), &body).await.json()["usage"].clone();
    assert_eq!((&usage["input_tokens"], &usage["cache_read_input_tokens"]), (&json!(plain - 4), &json!(4)));
}

#[tokio::test]
async fn limits_and_stop_sequences_end_the_answer() {
    let rig = Rig::start([vec![MockModel::loaded("m").saying(["one ", "two ", "three"])]]).await;
    let mut body = ask("m", "Hi");
    body["stop_sequences"] = json!(["tw"]);
    let reply = messages(&rig.client(), &body).await.json();
    assert_eq!(reply["content"][0]["text"], "one ");
    body["stop_sequences"] = json!([]);
    body["max_tokens"] = 2.into();
    let reply = messages(&rig.client(), &body).await.json();
    assert_eq!((&reply["content"][0]["text"], &reply["stop_reason"]), (&json!("one two "), &json!("max_tokens")));
}

#[tokio::test]
async fn every_refusal_has_anthropics_shape() {
    let rig = Rig::with([vec![MockModel::loaded("m"), MockModel::loaded("busy")]], |config| {
        config.limits.body_bytes_max = 8_000.try_into().unwrap();
    })
    .await;
    rig.mock(0).set_faults("busy", Faults { overloaded: Some(9), ..Faults::default() });
    let (create, count) = ("/v1/messages", "/v1/messages/count_tokens");
    let mut unlimited = ask("m", "hi");
    unlimited.as_object_mut().unwrap().remove("max_tokens");
    let cases = [
        (Method::POST, create, ask("nobody", "hi").to_string(), 404, "not_found_error", "`nobody`"),
        (Method::POST, create, streamed("nobody", "hi").to_string(), 404, "not_found_error", "`nobody`"),
        (Method::POST, count, ask("nobody", "hi").to_string(), 404, "not_found_error", "`nobody`"),
        (Method::POST, create, unlimited.to_string(), 400, "invalid_request_error", "max_tokens: is required"),
        (Method::POST, create, "{".into(), 400, "invalid_request_error", "body: is not valid JSON"),
        (Method::POST, create, ask("m", &"x".repeat(8_000)).to_string(), 413, "request_too_large", "8000 bytes"),
        (
            Method::POST,
            create,
            ask("m", &"x".repeat(5_000)).to_string(),
            400,
            "invalid_request_error",
            "prompt is too long: 5018 tokens > 4096 maximum",
        ),
        (Method::POST, create, ask("busy", "hi").to_string(), 529, "overloaded_error", "busy"),
        (Method::POST, create, streamed("busy", "hi").to_string(), 529, "overloaded_error", "busy"),
        (Method::GET, create, String::new(), 405, "invalid_request_error", "GET"),
        (Method::POST, "/v1/messages/batches", "{}".into(), 404, "not_found_error", "/v1/messages/batches"),
    ];
    for (method, path, body, status, kind, says) in cases {
        let reply = rig.client().request(method, path, HeaderMap::new(), body.clone()).await;
        assert_eq!(reply.status.as_u16(), status, "{path} {body}: {}", reply.text());
        let error = reply.json();
        assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!(kind)), "{error}");
        assert!(error["error"]["message"].as_str().unwrap().contains(says), "{error}");
        assert_eq!(error["request_id"], reply.headers["x-request-id"].to_str().unwrap());
        assert_eq!(reply.headers.get("retry-after").is_some(), status == 529, "{error}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_an_error_and_never_an_end() {
    let rig = Rig::start([vec![MockModel::loaded("m").saying(["one ", "two ", "three "])]]).await;
    let faults = [Faults { cut_after: Some(2), ..Faults::default() }, Faults { die_after: Some(2), ..Faults::default() }];
    for faults in faults {
        rig.mock(0).set_faults("m", faults);
        let text = messages(&rig.client(), &streamed("m", "hi")).await.text();
        let events = events(&text);
        let delta = "content_block_delta";
        assert_eq!(types(&events), ["message_start", "content_block_start", delta, delta, "error"], "{text}");
        assert_eq!(events[4]["error"]["type"], "api_error");
        let whole = messages(&rig.client(), &ask("m", "hi")).await;
        assert_eq!((whole.status.as_u16(), &whole.json()["error"]["type"]), (500, &json!("api_error")), "{}", whole.text());
    }
}

#[tokio::test]
async fn a_stream_that_waits_for_a_load_is_pinged_and_then_answered() {
    let node = RawNode::start(vec![MockModel::available("m")], |_, _| None).await;
    let rig = in_front_of(&node, |config| config.timeouts.keep_alive_ms = Millis::new(2)).await;
    let body = streamed("m", "hi").to_string();
    let mut response = rig.client().open(Method::POST, "/v1/messages", HeaderMap::new(), body).await;
    let first = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(&first[..], b"event: ping\ndata: {\"type\":\"ping\"}\n\n");
    node.gate.notify_one();
    let rest = response.into_body().collect().await.unwrap().to_bytes();
    let events = events(std::str::from_utf8(&rest).unwrap());
    assert_eq!((types(&events)[0], *types(&events).last().unwrap()), ("message_start", "message_stop"));
}

#[tokio::test]
async fn a_client_that_leaves_cancels_the_generation() {
    let rig = Rig::start([vec![MockModel::loaded("m").saying(["one "])]]).await;
    rig.mock(0).set_faults("m", Faults { hang: true, ..Faults::default() });
    let client = rig.client();
    let body = streamed("m", "hi").to_string();
    let asking = tokio::spawn(async move { client.open(Method::POST, "/v1/messages", HeaderMap::new(), body).await });
    rig.mock(0).wait_for(|counts| counts.active == 1).await;
    asking.abort();
    rig.mock(0).wait_for(|counts| counts.active == 0 && counts.cancelled == 1).await;
    until(async || rig.in_flight() == 0).await;
}

#[tokio::test]
async fn thoughts_and_calls_come_as_blocks_and_credentials_stay_here() {
    let upstream = [
        r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"usage":{"prompt_tokens":9,"completion_tokens":0,"total_tokens":9}}"#,
        r#"{"choices":[{"index":0,"delta":{"reasoning_content":"Hm."}}]}"#,
        r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"now","arguments":"{\"a\":"}}]}}]}"#,
        r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"1}"}}]}}]}"#,
        r#"{"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#,
        r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":5,"total_tokens":14}}"#,
        "[DONE]",
    ];
    let upstream: String = upstream.iter().map(|data| format!("data: {data}\n\n")).collect();
    let node = RawNode::start(vec![MockModel::loaded("m")], move |path, _| {
        let answer = || Response::builder().header("content-type", "text/event-stream").body(Body::from(upstream.clone())).unwrap();
        (path == "/v1/chat/completions").then(answer)
    })
    .await;
    let rig = in_front_of(&node, |_| {}).await;
    let headers = ["x-api-key", "authorization"].map(|name| (name.parse().unwrap(), HeaderValue::from_static("Bearer secret")));
    let headers: HeaderMap = headers.into_iter().collect();
    let mut body = streamed("m", "hi");
    body["thinking"] = json!({ "type": "enabled", "budget_tokens": 1024 });
    body["tools"] = json!([{ "name": "now", "input_schema": { "type": "object" } }]);
    let reply = rig.client().request(Method::POST, "/v1/messages", headers, body.to_string()).await;
    let events = events(&reply.text());
    let blocks: Vec<&Value> =
        events.iter().filter(|event| event["type"] == "content_block_start").map(|event| &event["content_block"]["type"]).collect();
    assert_eq!(blocks, ["thinking", "tool_use"]);
    let arguments: String = events.iter().filter_map(|event| event["delta"]["partial_json"].as_str()).collect();
    assert_eq!(arguments, "{\"a\":1}");
    assert!(events.iter().any(|event| event["delta"]["type"] == "signature_delta"));
    assert_eq!(events[events.len() - 2]["delta"]["stop_reason"], "tool_use");

    let seen = node.seen.lock().unwrap();
    let (_, headers, sent) = seen.iter().find(|(path, ..)| path == "/v1/chat/completions").unwrap();
    assert!(headers.values().all(|value| !value.to_str().unwrap().contains("secret")), "{headers:?}");
    let sent: Value = serde_json::from_slice(sent).unwrap();
    assert_eq!(sent["chat_template_kwargs"], json!({ "enable_thinking": true }));
    assert_eq!(sent["tools"][0]["function"]["name"], "now");
}

#[tokio::test]
async fn the_catalogue_has_anthropics_shape_for_anthropics_clients() {
    let rig = Rig::start([vec![MockModel::loaded("b"), MockModel::available("org/a")]]).await;
    let headers: HeaderMap = [("anthropic-version".parse().unwrap(), HeaderValue::from_static("2023-06-01"))].into_iter().collect();
    let get = async |path: &str| rig.client().request(Method::GET, path, headers.clone(), "").await;
    let page = get("/v1/models?limit=1000").await.json();
    assert_eq!((&page["has_more"], &page["first_id"], &page["last_id"]), (&json!(false), &json!("b"), &json!("org/a")));
    assert_eq!((&page["data"][1]["type"], &page["data"][1]["display_name"]), (&json!("model"), &json!("org/a")));
    assert!(page["data"][1]["created_at"].as_str().unwrap().ends_with('Z'));
    assert_eq!(get("/v1/models/org/a").await.json(), page["data"][1]);
    let missing = get("/v1/models/nobody").await;
    assert_eq!((missing.status.as_u16(), &missing.json()["error"]["type"]), (404, &json!("not_found_error")));
    assert_eq!(rig.client().get("/v1/models").await.json()["object"], "list");
}
