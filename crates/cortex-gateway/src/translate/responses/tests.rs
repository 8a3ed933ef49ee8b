//! Golden transcripts: what the client sends, what the node is sent, what the node streams, and what the client reads, streamed and whole.

use std::fs;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use cortex_core::sse::SseParser;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::request::{as_chat, responses};
use super::stream::{StreamTranslator, whole};
use crate::translate::Translator;
use crate::translate::broken::{a_break, broken, broken_stream};

/// One file of `testdata/responses`.
struct Transcript {
    name: String,
    request: String,
    chat: String,
    upstream: String,
    events: String,
}

fn transcripts() -> Vec<Transcript> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/responses");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths.iter().map(|path| transcript(path)).collect()
}

fn transcript(path: &Path) -> Transcript {
    let text = fs::read_to_string(path).unwrap();
    let section = |name: &str| {
        let (_, rest) = text.split_once(&format!("=== {name}\n")).unwrap();
        rest.split_once("=== ").map_or(rest, |(section, _)| section).to_owned()
    };
    Transcript {
        name: path.file_stem().unwrap().to_string_lossy().into_owned(),
        request: section("request"),
        chat: section("chat"),
        upstream: section("upstream"),
        events: section("events"),
    }
}

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
    for transcript in transcripts() {
        let chat = pretty(&responses(transcript.request.as_bytes()).unwrap().body);
        let events = translated(&transcript.request, [transcript.upstream.as_bytes()].into_iter());
        for (section, actual, expected) in [("chat", &chat, &transcript.chat), ("events", &events, &transcript.events)] {
            assert!(actual == expected, "{}.txt\n=== {section}\n{actual}=== end", transcript.name);
        }
    }
}

#[test]
fn every_stream_keeps_the_rules_of_the_dialect() {
    for Transcript { name, events, .. } in transcripts() {
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
        for transcript in transcripts() {
            let upstream = if crlf { transcript.upstream.replace('\n', "\r\n") } else { transcript.upstream };
            let bytes = upstream.as_bytes();
            let mut places: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([0, bytes.len()]).collect();
            places.sort_unstable();
            let text = translated(&transcript.request, places.windows(2).map(|ends| &bytes[ends[0]..ends[1]]));
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
        cut in 1..300usize,
    ) {
        for transcript in transcripts() {
            let _ = responses(broken(&transcript.request, &breaks).as_bytes()); // refused, or read in spite of it
            let upstream = broken_stream(&transcript.upstream, &breaks, &garbage);
            let text = translated(&transcript.request, upstream.chunks(cut));
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
