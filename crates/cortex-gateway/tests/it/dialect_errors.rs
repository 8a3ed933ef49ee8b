//! Everything that can go wrong, as the clients of each dialect read it: one golden text, `testdata/errors.txt`.

use std::fmt::Write;

use cortex_core::config::{KeyEntry, Millis};
use http::{HeaderMap, HeaderValue, Method};
use neuron_api::mock::{Faults, MockModel, Said};
use serde_json::{Value, json};

use crate::keys::key;
use crate::rig::Rig;

/// Each dialect's path, and its smallest request.
fn dialects() -> [(&'static str, Value); 4] {
    let messages = json!([{ "role": "user", "content": "hi" }]);
    [
        ("/v1/chat/completions", json!({ "messages": messages })),
        ("/v1/completions", json!({ "prompt": "hi" })),
        ("/v1/responses", json!({ "input": "hi" })),
        ("/v1/messages", json!({ "messages": messages, "max_tokens": 50 })),
    ]
}

/// What goes wrong: for whom, with which model, and what is changed in the request.
const CASES: [(&str, &str, &str, &str); 14] = [
    ("no key", "", "m", "{}"),
    ("a wrong key", "nobody", "m", "{}"),
    ("a key for other models", "few", "m", "{}"),
    ("too many requests in a minute", "rare", "m", "{}"),
    ("a model that is not there", "user", "gone", "{}"),
    ("a wrong value", "user", "m", r#"{"temperature": "hot"}"#),
    ("a prompt longer than the context", "user", "short", "{}"),
    ("no place", "user", "busy", "{}"),
    ("no place, streamed", "user", "busy", r#"{"stream": true}"#),
    ("a model that cannot be loaded", "user", "broken", "{}"),
    ("the node gives up in the middle", "user", "dying", "{}"),
    ("the node gives up in the middle, streamed", "user", "dying", r#"{"stream": true}"#),
    ("the connection breaks in the middle, streamed", "user", "cut", r#"{"stream": true}"#),
    ("a call breaks off in the middle, streamed", "user", "calling", r#"{"stream": true}"#),
];

async fn rig() -> Rig {
    let short = MockModel { context: 1, ..MockModel::loaded("short") };
    let call = Said::ToolCall { name: "read".into(), arguments: r#"{"path": "notes.txt"}"#.into() };
    let calling = MockModel::loaded("calling").acting([call]);
    let models = ["m", "busy", "dying", "cut"].map(|name| MockModel::loaded(name).saying(["one ", "two ", "three"]));
    let models = models.into_iter().chain([short, calling, MockModel::available("broken")]).collect();
    let rig = Rig::with([models], |config| {
        let few = KeyEntry { models: Some(["busy".to_owned()].into()), ..key("few") };
        let rare = KeyEntry { requests_per_minute_max: Some(1), ..key("rare") };
        config.keys = vec![key("user"), few, rare];
        config.timeouts.queue_ms_max = Millis::new(1);
    })
    .await;
    for (model, faults) in [
        ("busy", Faults { overloaded: Some(9), ..Faults::default() }),
        ("broken", Faults { refuse_load: Some("its weights are damaged".into()), ..Faults::default() }),
        ("dying", Faults { die_after: Some(2), ..Faults::default() }),
        ("cut", Faults { cut_after: Some(2), ..Faults::default() }),
        ("calling", Faults { die_after: Some(2), ..Faults::default() }),
    ] {
        rig.mock(0).set_faults(model, faults);
    }
    rig
}

/// The answer to a request, what changes from run to run made constant.
async fn answer(rig: &Rig, path: &str, key: &str, body: &Value) -> String {
    let mut headers: HeaderMap = [("x-request-id".parse().unwrap(), HeaderValue::from_static("r"))].into_iter().collect();
    if !key.is_empty() {
        headers.insert("authorization", format!("Bearer sk-{key}").parse().unwrap());
    }
    let reply = rig.client().request(Method::POST, path, headers, body.to_string()).await;
    let later = if reply.headers.contains_key("retry-after") { ", and when to come back" } else { "" };
    let numbers = ["\"created\":", "\"created_at\":", "retry in ", "come back in "];
    let text = numbers.into_iter().fold(reply.text(), |text, before| constant(&text, before, |c| c.is_ascii_digit()));
    let text = constant(&text, "in the middle of the answer: ", |c| c != '"');
    format!("{}{later}\n{}\n", reply.status.as_u16(), text.trim_end())
}

/// What stands behind each `before`, as long as it `varies`, is 0.
fn constant(text: &str, before: &str, varies: fn(char) -> bool) -> String {
    let mut parts = text.split(before);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + before + "0" + part.trim_start_matches(varies))
}

#[tokio::test]
async fn every_error_has_the_callers_own_shape() {
    let rig = rig().await;
    let [(path, mut body), ..] = dialects();
    body["model"] = "m".into();
    assert!(answer(&rig, path, "rare", &body).await.starts_with("200"), "the first request of the minute");
    let mut found = String::new();
    for (what, key, model, change) in CASES {
        for (path, mut body) in dialects() {
            body["model"] = model.into();
            let change: Value = serde_json::from_str(change).unwrap();
            body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            writeln!(found, "== {what}: {path}\n{}", answer(&rig, path, key, &body).await).unwrap();
        }
    }
    assert!(found == include_str!("../../testdata/errors.txt"), "errors.txt is not\n{found}=== end");
}
