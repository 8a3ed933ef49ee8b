//! Golden transcripts, and what no transcript shows.

use bytes::BytesMut;
use cortex_core::anthropic::{MessageFold, StreamEvent};
use cortex_core::sse::SseParser;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::broken::{a_break, broken, broken_stream};
use super::transcript::{cut, transcripts};
use super::{Asked, StreamTranslator, Translator, error, request, response};

/// What the client reads when the node's bytes come in these pieces.
fn translated<'a>(asked: Asked, pieces: impl Iterator<Item = &'a [u8]>) -> String {
    let mut translator = StreamTranslator::new(asked, "1");
    let mut out = BytesMut::new();
    pieces.for_each(|piece| translator.push(piece, &mut out));
    translator.end(&mut out);
    String::from_utf8(out.to_vec()).unwrap()
}

fn events_of(text: &str) -> Vec<StreamEvent> {
    let mut events = Vec::new();
    let read = |event: cortex_core::sse::SseEvent| {
        let parsed: StreamEvent = serde_json::from_str(&event.data).unwrap();
        assert_eq!(event.name, parsed.name());
        events.push(parsed);
    };
    SseParser::new(1 << 20).push(text.as_bytes(), read).unwrap();
    events
}

/// The same answer, put together from the events.
fn folded(events: &[StreamEvent]) -> String {
    let mut fold = MessageFold::default();
    events.iter().for_each(|event| fold.push(event.clone()));
    fold.finish().map_or_else(String::new, |message| serde_json::to_string_pretty(&message).unwrap() + "\n")
}

#[test]
fn transcripts_come_out_as_written() {
    for transcript in transcripts("anthropic") {
        let chat = request::messages(transcript.request.as_bytes(), false).unwrap();
        let body: Value = serde_json::from_slice(&chat.body).unwrap();
        let chat_text = serde_json::to_string_pretty(&body).unwrap() + "\n";
        let events = translated(chat.asked, [transcript.upstream.as_bytes()].into_iter());
        transcript.compare(&chat_text, &events, &folded(&events_of(&events)));
    }
}

#[test]
fn every_stream_keeps_the_rules_of_the_dialect() {
    for transcript in transcripts("anthropic") {
        let events = events_of(&transcript.events);
        let (mut open, mut next) = (None, 0);
        for (place, event) in events.iter().enumerate() {
            match event {
                StreamEvent::MessageStart { .. } => assert_eq!(place, 0, "{}", transcript.name),
                StreamEvent::ContentBlockStart { index, .. } => {
                    assert_eq!((open, *index), (None, next), "{}", transcript.name);
                    (open, next) = (Some(*index), next + 1);
                }
                StreamEvent::ContentBlockDelta { index, .. } => assert_eq!(open, Some(*index), "{}", transcript.name),
                StreamEvent::ContentBlockStop { index } => assert_eq!(open.take(), Some(*index), "{}", transcript.name),
                StreamEvent::MessageDelta { .. } => assert_eq!((open, place), (None, events.len() - 2), "{}", transcript.name),
                StreamEvent::MessageStop | StreamEvent::Error { .. } => assert_eq!(place, events.len() - 1, "{}", transcript.name),
                StreamEvent::Ping => {}
            }
        }
        assert!(matches!(events.last(), Some(StreamEvent::MessageStop | StreamEvent::Error { .. })), "{}", transcript.name);
    }
}

proptest! {
    #[test]
    fn however_the_nodes_bytes_are_cut_the_client_reads_the_same(cuts in prop::collection::vec(0..4_000usize, 0..40), crlf: bool) {
        for transcript in transcripts("anthropic") {
            let upstream = transcript.upstream(crlf);
            let asked = request::messages(transcript.request.as_bytes(), false).unwrap().asked;
            let text = translated(asked, cut(upstream.as_bytes(), &cuts).into_iter());
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
        for transcript in transcripts("anthropic") {
            let asked = request::messages(broken(&transcript.request, &breaks).as_bytes(), false).map(|chat| chat.asked);
            let asked = asked.unwrap_or_else(|_| Asked { model: "m".into(), marks_cache: false });
            let upstream = broken_stream(&transcript.upstream, &breaks, &garbage);
            let text = translated(asked, upstream.chunks(piece));
            let events = events_of(&text);
            let ends = |event: &StreamEvent| matches!(event, StreamEvent::MessageStop | StreamEvent::Error { .. });
            prop_assert_eq!(events.iter().filter(|event| ends(event)).count(), 1, "{}", text);
            prop_assert!(events.last().is_some_and(ends), "{}", text);
            prop_assert!(text.len() < 20 * (upstream.len() + 1_000), "{} bytes of {}", text.len(), upstream.len());
        }
    }
}

#[test]
fn a_whole_answer_is_the_stream_put_together() {
    let asked = Asked { model: "fast".into(), marks_cache: true };
    let body = json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{ "index": 0, "finish_reason": "tool_calls", "logprobs": null, "message": {
            "role": "assistant", "content": "Looking.", "refusal": null, "reasoning_content": "Hm.",
            "tool_calls": [
                { "id": "call_a", "type": "function", "function": { "name": "now", "arguments": "{}" } },
                { "id": "call_b", "type": "function", "function": { "name": "weather", "arguments": "{\"city\": \"Oslo\"}" } },
            ],
        } }],
        "usage": { "prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17, "prompt_tokens_details": { "cached_tokens": 8 } },
    });
    let message = response::message(body.to_string().as_bytes(), asked.clone(), "1").unwrap();
    let expected = json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "fast",
        "content": [
            { "type": "thinking", "thinking": "Hm.", "signature": "msg_1_0" },
            { "type": "text", "text": "Looking." },
            { "type": "tool_use", "id": "call_a", "name": "now", "input": {} },
            { "type": "tool_use", "id": "call_b", "name": "weather", "input": { "city": "Oslo" } },
        ],
        "stop_reason": "tool_use", "stop_sequence": null,
        "usage": { "input_tokens": 2, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 8, "output_tokens": 7 },
    });
    assert_eq!(serde_json::to_value(message).unwrap(), expected);
    for broken in ["", "{}", r#"{"choices":[{"message":{"content":"Hi"}}]}"#] {
        assert_eq!(response::message(broken.as_bytes(), asked.clone(), "1"), None, "{broken}");
    }
}

#[test]
fn a_call_that_broke_off_is_text_in_a_whole_answer() {
    let said = |finish_reason: &str, first: &str| {
        let body = json!({ "choices": [{ "finish_reason": finish_reason, "message": { "content": "Now", "tool_calls": [
            { "id": "call_a", "function": { "name": "now", "arguments": first } },
            { "id": "call_b", "function": { "name": "now", "arguments": "{\"zone\": \"Eu" } },
        ] } }] });
        let message = response::message(body.to_string().as_bytes(), Asked { model: "m".into(), marks_cache: false }, "1").unwrap();
        serde_json::to_value(message).unwrap()
    };
    let text = |text: &str| json!({ "type": "text", "text": text });
    let call = json!({ "type": "tool_use", "id": "call_a", "name": "now", "input": {} });
    let cases = [
        ("length", "{}", "max_tokens", json!([text("Now"), call, text("now {\"zone\": \"Eu")])),
        ("tool_calls", "{}", "tool_use", json!([text("Now"), call, text("now {\"zone\": \"Eu")])),
        ("tool_calls", "{]}", "end_turn", json!([text("Now"), text("now {]}"), text("now {\"zone\": \"Eu")])),
    ];
    for (finish_reason, first, stop_reason, content) in cases {
        let message = said(finish_reason, first);
        assert_eq!((&message["stop_reason"], &message["content"]), (&json!(stop_reason), &content), "{finish_reason} {first}");
    }
}

#[test]
fn mixed_calls_are_an_error_and_not_a_wrong_call() {
    let call = |index: u32, name: Option<&str>| {
        let delta = json!({ "tool_calls": [{ "index": index, "function": { "name": name, "arguments": "{" } }] });
        format!("data: {}\n\n", json!({ "choices": [{ "index": 0, "delta": delta, "finish_reason": null }] }))
    };
    let upstream = [call(0, Some("a")), call(1, Some("b")), call(0, None)].concat();
    let text = translated(Asked { model: "m".into(), marks_cache: false }, [upstream.as_bytes()].into_iter());
    assert!(matches!(events_of(&text).last(), Some(StreamEvent::Error { error, .. }) if error.message.contains("mixed")), "{text}");
}

#[test]
fn the_billing_line_goes_unless_it_is_kept() {
    let body = json!({ "model": "m", "max_tokens": 1, "messages": [{ "role": "user", "content": "Hi" }], "system": [
        { "type": "text", "text": "x-anthropic-billing-header: a" }, { "type": "text", "text": "b" },
    ] });
    for (keep, system) in [(false, "b"), (true, "x-anthropic-billing-header: a\nb")] {
        let chat = request::messages(body.to_string().as_bytes(), keep).unwrap();
        let chat: Value = serde_json::from_slice(&chat.body).unwrap();
        assert_eq!(chat["messages"][0], json!({ "role": "system", "content": system }));
    }
}

#[test]
fn a_wrong_field_is_named_by_its_path() {
    let with = |field: &str, value: Value| {
        let mut body = json!({ "model": "m", "max_tokens": 1, "messages": [{ "role": "user", "content": "Hi" }] });
        body[field] = value;
        body.to_string()
    };
    let content = |block: Value| with("messages", json!([{ "role": "user", "content": [block] }]));
    let cases = [
        (String::new(), "body: is not valid JSON"),
        ("[]".into(), "body: must be an object, not an array"),
        (with("model", Value::Null), "model: is required"),
        (with("model", json!(7)), "model: must be a string, not a number"),
        (with("max_tokens", Value::Null), "max_tokens: is required"),
        (with("max_tokens", json!("7")), "max_tokens: must be an integer, not a string"),
        (with("max_tokens", json!(0)), "max_tokens: must be an integer of at least 1, not 0"),
        (with("max_tokens", json!(1.5)), "max_tokens: must be an integer of at least 1, not 1.5"),
        (with("messages", json!({})), "messages: must be an array, not an object"),
        (with("messages", json!([])), "messages: must hold at least one message"),
        (with("messages", json!(["Hi"])), "messages.0: must be an object, not a string"),
        (with("messages", json!([{ "content": "Hi" }])), "messages.0.role: is required"),
        (with("messages", json!([{ "role": "tool", "content": "Hi" }])), "messages.0.role: must be"),
        (with("messages", json!([{ "role": "user" }])), "messages.0.content: is required"),
        (
            with("messages", json!([{ "role": "user", "content": 7 }])),
            "messages.0.content: must be a string or an array of content blocks, not a number",
        ),
        (content(json!({ "text": "Hi" })), "messages.0.content.0.type: is required"),
        (content(json!({ "type": "text", "text": 7 })), "messages.0.content.0.text: must be a string, not a number"),
        (content(json!({ "type": "image" })), "messages.0.content.0.source: is required"),
        (content(json!({ "type": "image", "source": { "type": "file", "file_id": "f" } })), "messages.0.content.0.source.type: must be"),
        (content(json!({ "type": "document", "source": { "type": "base64" } })), "messages.0.content.0.source.type: must be"),
        (
            content(json!({ "type": "tool_use", "id": "a", "name": "b", "input": [] })),
            "messages.0.content.0.input: must be an object, not an array",
        ),
        (content(json!({ "type": "tool_result", "content": "x" })), "messages.0.content.0.tool_use_id: is required"),
        (with("system", json!(7)), "system: must be a string or an array of content blocks, not a number"),
        (with("system", json!([{ "type": "text" }])), "system.0.text: is required"),
        (with("stop_sequences", json!("x")), "stop_sequences: must be an array, not a string"),
        (with("stop_sequences", json!(["x", 7])), "stop_sequences.1: must be a string, not a number"),
        (with("stream", json!("yes")), "stream: must be true or false, not a string"),
        (with("temperature", json!("hot")), "temperature: must be a number, not a string"),
        (with("top_k", json!(-1)), "top_k: must be an integer of at least 0, not -1"),
        (with("tools", json!([{ "name": "a" }])), "tools.0.input_schema: is required"),
        (with("tool_choice", json!("auto")), "tool_choice: must be an object, not a string"),
        (with("tool_choice", json!({ "type": "tool" })), "tool_choice.name: is required"),
        (with("thinking", json!({ "type": "deep" })), "thinking.type: must be"),
    ];
    for (body, says) in cases {
        let error = request::messages(body.as_bytes(), false).expect_err(&body).to_string();
        assert!(error.starts_with(says), "{body}: {error}");
    }
}

#[test]
fn a_count_needs_no_limit_and_counts_the_same_prompt() {
    for transcript in transcripts("anthropic") {
        let mut body: Value = serde_json::from_str(&transcript.request).unwrap();
        let answered = request::messages(body.to_string().as_bytes(), false).unwrap();
        body.as_object_mut().unwrap().remove("max_tokens");
        let counted = request::count_tokens(body.to_string().as_bytes(), false).unwrap();
        let [answered, counted] = [answered, counted].map(|chat| serde_json::from_slice::<Value>(&chat.body).unwrap());
        for (name, value) in counted.as_object().unwrap() {
            assert_eq!(*value, answered[name], "{}", transcript.name);
        }
    }
}

#[test]
fn errors_have_anthropics_kinds_and_statuses() {
    let cases = [
        (400, "invalid_request_error", "", "x", 400, "invalid_request_error", "x"),
        (
            400,
            "invalid_request_error",
            "context_length_exceeded",
            "the prompt has 5000 tokens, but the model's context is 4096 tokens",
            400,
            "invalid_request_error",
            "prompt is too long: 5000 tokens > 4096 maximum",
        ),
        (401, "invalid_request_error", "", "x", 401, "authentication_error", "x"),
        (403, "invalid_request_error", "", "x", 403, "permission_error", "x"),
        (404, "invalid_request_error", "model_not_found", "x", 404, "not_found_error", "x"),
        (405, "invalid_request_error", "method_not_allowed", "x", 405, "invalid_request_error", "x"),
        (413, "invalid_request_error", "request_too_large", "x", 413, "request_too_large", "x"),
        (429, "rate_limit_error", "", "x", 429, "rate_limit_error", "x"),
        (429, "rate_limit_error", "overloaded", "x", 529, "overloaded_error", "x"),
        (429, "rate_limit_error", "model_loading", "x", 529, "overloaded_error", "x"),
        (503, "server_error", "no_node_available", "x", 529, "overloaded_error", "x"),
        (503, "server_error", "cannot_load", "x", 500, "api_error", "x"),
        (502, "server_error", "node_failed", "x", 500, "api_error", "x"),
    ];
    for (status, kind, code, message, to_status, to_kind, to_message) in cases {
        let code = if code.is_empty() { Value::Null } else { code.into() };
        let body = json!({ "error": { "message": message, "type": kind, "param": null, "code": code } }).to_string();
        let (status, detail) = error::of_answer(status, body.as_bytes());
        assert_eq!((status, serde_json::to_value(&detail).unwrap()), (to_status, json!({ "type": to_kind, "message": to_message })));
    }
    let (status, detail) = error::of_answer(502, b"<html>");
    assert_eq!((status, detail.message.as_str()), (500, "the answer was 502"));
}
