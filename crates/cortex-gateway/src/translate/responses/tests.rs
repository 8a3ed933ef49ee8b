//! Golden transcripts, and what no transcript shows.

use bytes::{Bytes, BytesMut};
use cortex_core::sse::SseParser;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::request::{as_chat, responses};
use super::stream::{StreamTranslator, whole};
use crate::translate::Translator;
use crate::translate::broken::{a_break, broken, broken_stream};
use crate::translate::transcript::{Transcript, cut, transcripts};

/// What the client reads when the node's bytes come in these pieces.
fn translated<'a>(request: &str, pieces: impl Iterator<Item = &'a [u8]>) -> String {
    let mut translator = StreamTranslator::new(responses(request.as_bytes()).unwrap().echo, "1", 7);
    let mut out = BytesMut::new();
    pieces.for_each(|piece| translator.push(piece, &mut out));
    translator.end(&mut out);
    String::from_utf8(out.to_vec()).unwrap()
}

fn events_of(text: &str) -> Vec<Value> {
    let mut events = Vec::new();
    let read = |event: cortex_core::sse::SseEvent| {
        let parsed: Value = serde_json::from_str(&event.data).unwrap();
        assert_eq!(event.name, parsed["type"]);
        events.push(parsed);
    };
    SseParser::new(1 << 20).push(text.as_bytes(), read).unwrap();
    events
}

fn pretty(body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).unwrap();
    serde_json::to_string_pretty(&body).unwrap() + "\n"
}

#[test]
fn transcripts_come_out_as_written() {
    for transcript in transcripts("responses") {
        let chat = pretty(&responses(transcript.request.as_bytes()).unwrap().body);
        let events = translated(&transcript.request, [transcript.upstream.as_bytes()].into_iter());
        transcript.compare(&chat, &events, "");
    }
}

#[test]
fn every_stream_keeps_the_rules_of_the_dialect() {
    for Transcript { name, events, .. } in transcripts("responses") {
        let events = events_of(&events);
        let (mut open, mut items) = (None, Vec::new());
        for (place, event) in events.iter().enumerate() {
            assert_eq!(event["sequence_number"], place, "{name}");
            let index = event["output_index"].as_u64();
            match event["type"].as_str().unwrap() {
                "response.created" => assert_eq!(place, 0, "{name}"),
                "response.in_progress" => assert_eq!(place, 1, "{name}"),
                "response.output_item.added" => {
                    assert_eq!((open, index), (None, Some(items.len() as u64)), "{name}");
                    open = index;
                }
                "response.output_item.done" => {
                    assert_eq!((open.take(), index.is_some()), (index, true), "{name}");
                    items.push(event["item"].clone());
                }
                "response.completed" | "response.incomplete" => {
                    assert_eq!((open, place + 1), (None, events.len()), "{name}");
                    let output: Vec<Value> = event["response"]["output"].as_array().unwrap().clone();
                    assert!(output.iter().zip(&items).all(|(a, b)| a["id"] == b["id"] && a["content"] == b["content"]), "{name}");
                    assert_eq!(output.len(), items.len(), "{name}");
                }
                "response.failed" => assert_eq!(place + 1, events.len(), "{name}"),
                _ => assert!(open.is_some() && open == index, "{name}: {event}"),
            }
        }
        let last = events.last().unwrap()["type"].as_str().unwrap();
        assert!(["response.completed", "response.incomplete", "response.failed"].contains(&last), "{name}");
    }
}

proptest! {
    #[test]
    fn however_the_nodes_bytes_are_cut_the_client_reads_the_same(cuts in prop::collection::vec(0..4_000usize, 0..40), crlf: bool) {
        for transcript in transcripts("responses") {
            let upstream = transcript.upstream(crlf);
            let text = translated(&transcript.request, cut(upstream.as_bytes(), &cuts).into_iter());
            prop_assert_eq!(text, transcript.events);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn broken_requests_and_answers_end_in_words(
        breaks in prop::collection::vec(a_break(), 1..4),
        garbage in prop::collection::vec(any::<u8>(), 0..200),
        piece in 1..300usize,
    ) {
        for transcript in transcripts("responses") {
            let _ = responses(broken(&transcript.request, &breaks).as_bytes()); // refused, or read in spite of it
            let upstream = broken_stream(&transcript.upstream, &breaks, &garbage);
            let text = translated(&transcript.request, upstream.chunks(piece));
            let events = events_of(&text);
            let ends = |event: &Value| {
                ["response.completed", "response.incomplete", "response.failed"].contains(&event["type"].as_str().unwrap_or_default())
            };
            prop_assert_eq!(events.iter().filter(|event| ends(event)).count(), 1, "{}", text);
            prop_assert!(events.last().is_some_and(ends), "{}", text);
            // Each end of an item repeats it, and the request is repeated three times.
            prop_assert!(text.len() < 40 * (upstream.len() + transcript.request.len() + 1_000), "{} bytes of {}", text.len(), upstream.len());
        }
    }
}

#[test]
fn a_whole_answer_has_the_items_of_the_stream() {
    let echo = responses(br#"{"model": "m", "input": "Hi", "metadata": {"a": "b"}}"#).unwrap().echo;
    let body = json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{ "index": 0, "finish_reason": "tool_calls", "message": {
            "role": "assistant", "content": "Looking.", "reasoning_content": "Hm.",
            "tool_calls": [{ "id": "call_a", "type": "function", "function": { "name": "now", "arguments": "{}" } }],
        } }],
        "usage": { "prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17, "prompt_tokens_details": { "cached_tokens": 8 } },
    });
    let answer = whole(body.to_string().as_bytes(), echo.clone(), "1", 7).unwrap();
    let kinds: Vec<_> = answer["output"].as_array().unwrap().iter().map(|item| item["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["reasoning", "message", "function_call"]);
    assert_eq!(answer["output"][1]["content"][0]["text"], "Looking.");
    assert_eq!((&answer["status"], &answer["store"], &answer["metadata"]), (&json!("completed"), &json!(false), &json!({ "a": "b" })));
    assert_eq!(answer["usage"]["input_tokens_details"]["cached_tokens"], 8);
    assert_eq!(whole(b"{}", echo.clone(), "1", 7), None);
    assert_eq!(whole(b"not json", echo, "1", 7), None);
}

#[test]
fn functions_in_a_namespace_bear_its_name_in_chat_and_their_own_in_the_answer() {
    let request = json!({
        "model": "m",
        "input": [
            { "role": "user", "content": "Hi" },
            { "type": "function_call", "call_id": "c", "namespace": "mcp__weather", "name": "get", "arguments": "{}" },
            { "type": "function_call_output", "call_id": "c", "output": "sunny" },
        ],
        "tools": [
            { "type": "namespace", "name": "mcp__weather", "description": "d", "tools": [{ "type": "function", "name": "get", "parameters": {} }] },
            { "type": "namespace", "name": "none", "tools": "none" },
            { "type": "function", "name": "get", "parameters": {} },
        ],
    });
    let translated = responses(request.to_string().as_bytes()).unwrap();
    let chat: Value = serde_json::from_slice(&translated.body).unwrap();
    let function = |name: &str| json!({ "type": "function", "function": { "name": name, "parameters": {} } });
    assert_eq!(chat["tools"], json!([function("mcp__weather__get"), function("get")]));
    assert_eq!(chat["messages"][1]["tool_calls"][0]["function"]["name"], "mcp__weather__get");
    let call = |name: &str| json!({ "id": name, "type": "function", "function": { "name": name, "arguments": "{}" } });
    let body = json!({ "choices": [{ "finish_reason": "tool_calls", "message": {
        "tool_calls": [call("mcp__weather__get"), call("get"), call("mcp__weather__put")],
    } }] });
    let answer = whole(body.to_string().as_bytes(), translated.echo, "1", 7).unwrap();
    let names: Vec<_> = answer["output"].as_array().unwrap().iter().map(|item| (&item["namespace"], &item["name"])).collect();
    let null = Value::Null;
    assert_eq!(names, [(&json!("mcp__weather"), &json!("get")), (&null, &json!("get")), (&null, &json!("mcp__weather__put"))]);
}

#[test]
fn what_would_need_a_memory_is_refused_and_so_is_what_cannot_be_read() {
    let with = |name: &str, value: Value| {
        let mut body = json!({ "model": "m", "input": "Hi" });
        body[name] = value;
        body
    };
    let cases = [
        (with("previous_response_id", json!("resp_1")), "previous_response_id"),
        (with("conversation", json!("conv_1")), "conversation"),
        (with("background", json!(true)), "background"),
        (with("prompt", json!({ "id": "p" })), "prompt"),
        (with("input", json!([{ "type": "item_reference", "id": "msg_1" }])), "input[0]"),
        (with("input", json!([])), "input"),
        (with("input", json!(7)), "input"),
        (with("input", json!(["x"])), "input[0]"),
        (with("input", json!([{ "role": "robot", "content": "x" }])), "input[0].role"),
        (with("input", json!([{ "role": "user", "content": [{ "type": "input_image", "file_id": "f" }] }])), "input[0].content[0]"),
        (with("input", json!([{ "role": "user", "content": [{ "type": "input_file", "file_id": "f" }] }])), "input[0].content[0]"),
        (with("input", json!([{ "type": "function_call", "name": "f", "arguments": "{}" }])), "input[0].call_id"),
        (with("max_output_tokens", json!(0)), "max_output_tokens"),
        (with("text", json!({ "format": { "type": "json_schema", "name": "n" } })), "text.format.schema"),
        (json!({ "model": "m" }), "input"),
        (json!({ "input": "Hi" }), "model"),
    ];
    for (body, param) in cases {
        let error = responses(body.to_string().as_bytes()).unwrap_err();
        assert_eq!((error.status, error.body.error.param.as_deref()), (400, Some(param)), "{body}");
    }
    for (name, value) in [("frobnicate", json!([1])), ("store", json!(true)), ("include", json!(["reasoning.encrypted_content"]))] {
        assert!(responses(with(name, value).to_string().as_bytes()).is_ok(), "{name}");
    }
}

#[test]
fn a_thought_that_came_to_nothing_is_not_given_to_a_later_answer() {
    let thought = json!({ "type": "reasoning", "id": "rs_0", "summary": [], "content": [{ "type": "reasoning_text", "text": "Hm." }] });
    let question = json!({ "role": "user", "content": "Go on." });
    let said = json!({ "role": "assistant", "content": "19" });
    for (input, expected) in [
        (json!([thought, question, said]), json!([question, said])),
        (json!([question, thought, said]), json!([question, { "role": "assistant", "content": "19", "reasoning_content": "Hm." }])),
    ] {
        let chat = responses(json!({ "model": "m", "input": input }).to_string().as_bytes()).unwrap().body;
        assert_eq!(serde_json::from_slice::<Value>(&chat).unwrap()["messages"], expected);
    }
}

#[test]
fn the_fields_of_this_dialect_may_come_to_the_path_of_the_other() {
    let body = json!({
        "model": "m", "stream": true, "stream_options": { "include_usage": true }, "input": [{ "role": "user", "content": [{ "type": "input_text", "text": "Hi" }] }],
        "tools": [{ "type": "function", "name": "f", "parameters": {}, "strict": null }],
    });
    let expected = json!({
        "model": "m", "messages": [{ "role": "user", "content": "Hi" }], "stream": true, "stream_options": { "include_usage": true },
        "tools": [{ "type": "function", "function": { "name": "f", "parameters": {} } }],
    });
    let chat: Value = serde_json::from_slice(&as_chat(body.to_string().into()).unwrap()).unwrap();
    assert_eq!(chat, expected);
    for untouched in [r#"{"model":"m", "messages":[{"role":"user","content":"\"input\""}]}"#, "{", r#"{"model": "m"}"#] {
        assert_eq!(as_chat(Bytes::from(untouched)).unwrap(), untouched);
    }
}
