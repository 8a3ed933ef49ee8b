//! What is wrong is refused with a status, a code and the field at fault; what is merely unknown is not.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Method, Request};
use futures::StreamExt;
use neuron_api::ApiLimits;

use crate::support::{open_with, post, read, send, talker};

/// (fields beside `model` and `messages`, param, code)
const BAD_CHAT_FIELDS: &[(&str, &str, &str)] = &[
    (r#""messages": null"#, "messages", "missing_required_parameter"),
    (r#""messages": []"#, "messages", "invalid_value"),
    (r#""messages": "hello""#, "messages", "invalid_type"),
    (r#""messages": ["hello"]"#, "messages[0]", "invalid_type"),
    (r#""messages": [{"role": "user", "content": "a"}, {"content": "b"}]"#, "messages[1].role", "missing_required_parameter"),
    (r#""messages": [{"role": 1, "content": "b"}]"#, "messages[0].role", "invalid_type"),
    (r#""messages": [{"role": "user", "content": 5}]"#, "messages[0].content", "invalid_type"),
    (r#""messages": [{"role": "user", "content": ["a"]}]"#, "messages[0].content[0]", "invalid_type"),
    (r#""model": null"#, "model", "missing_required_parameter"),
    (r#""model": """#, "model", "missing_required_parameter"),
    (r#""model": 7"#, "model", "invalid_type"),
    (r#""max_tokens": -1"#, "max_tokens", "invalid_value"),
    (r#""max_tokens": 0"#, "max_tokens", "invalid_value"),
    (r#""max_tokens": "ten""#, "max_tokens", "invalid_type"),
    (r#""max_tokens": 1.5"#, "max_tokens", "invalid_type"),
    (r#""max_completion_tokens": 0"#, "max_completion_tokens", "invalid_value"),
    (r#""temperature": -0.1"#, "temperature", "invalid_value"),
    (r#""temperature": 2.1"#, "temperature", "invalid_value"),
    (r#""temperature": "hot""#, "temperature", "invalid_type"),
    (r#""temperature": true"#, "temperature", "invalid_type"),
    (r#""top_p": 1.01"#, "top_p", "invalid_value"),
    (r#""top_k": -2"#, "top_k", "invalid_value"),
    (r#""min_p": 2"#, "min_p", "invalid_value"),
    (r#""presence_penalty": 3"#, "presence_penalty", "invalid_value"),
    (r#""frequency_penalty": -3"#, "frequency_penalty", "invalid_value"),
    (r#""repetition_penalty": 0"#, "repetition_penalty", "invalid_value"),
    (r#""seed": "x""#, "seed", "invalid_type"),
    (r#""seed": 1.5"#, "seed", "invalid_type"),
    (r#""n": 0"#, "n", "invalid_value"),
    (r#""n": 9"#, "n", "invalid_value"),
    (r#""stop": 5"#, "stop", "invalid_type"),
    (r#""stop": [5]"#, "stop", "invalid_type"),
    (r#""stop": """#, "stop", "invalid_value"),
    (r#""stop": ["1","2","3","4","5","6","7","8","9","10","11","12","13","14","15","16","17"]"#, "stop", "invalid_value"),
    (r#""stream": "yes""#, "stream", "invalid_type"),
    (r#""stream_options": true"#, "stream_options", "invalid_type"),
    (r#""stream_options": {"include_usage": 1}"#, "stream_options.include_usage", "invalid_type"),
    (r#""logprobs": 3"#, "logprobs", "invalid_type"),
    (r#""logprobs": true, "top_logprobs": 21"#, "top_logprobs", "invalid_value"),
    (r#""top_logprobs": 2"#, "top_logprobs", "invalid_value"),
    (r#""logit_bias": []"#, "logit_bias", "invalid_type"),
    (r#""logit_bias": {"cat": 1}"#, "logit_bias", "invalid_value"),
    (r#""logit_bias": {"1": 101}"#, "logit_bias", "invalid_value"),
    (r#""logit_bias": {"1": "x"}"#, "logit_bias", "invalid_type"),
    (r#""ignore_eos": 1"#, "ignore_eos", "invalid_type"),
    (r#""tools": {}"#, "tools", "invalid_type"),
    (r#""tools": ["x"]"#, "tools", "invalid_type"),
    (r#""tool_choice": "required""#, "tool_choice", "invalid_value"),
    (r#""tool_choice": {"type": "function", "function": {"name": "f"}}"#, "tool_choice", "invalid_value"),
    (r#""tool_choice": {"type": "function"}"#, "tool_choice", "invalid_value"),
    (r#""tool_choice": "sometimes""#, "tool_choice", "invalid_value"),
    (r#""tool_choice": 1"#, "tool_choice", "invalid_value"),
    (r#""parallel_tool_calls": "no""#, "parallel_tool_calls", "invalid_type"),
    (r#""chat_template_kwargs": 1"#, "chat_template_kwargs", "invalid_type"),
    (r#""reasoning_effort": 1"#, "reasoning_effort", "invalid_type"),
    (r#""continue_final_message": "a""#, "continue_final_message", "invalid_type"),
    (r#""continue_final_message": true, "add_generation_prompt": true"#, "add_generation_prompt", "invalid_value"),
    (r#""response_format": {"type": "xml"}"#, "response_format.type", "invalid_value"),
    (r#""response_format": {"type": "json_schema"}"#, "response_format.json_schema.schema", "missing_required_parameter"),
    (r#""response_format": {"type": "json_schema", "json_schema": {"schema": 1}}"#, "response_format.json_schema.schema", "invalid_type"),
];

#[tokio::test]
async fn a_bad_chat_field_is_named() {
    let mock = talker();
    for (fields, param, code) in BAD_CHAT_FIELDS {
        // A later field of the same name wins, so each case can also replace the good ones.
        let body = format!(r#"{{"model": "m", "messages": [{{"role": "user", "content": "hi"}}], {fields}}}"#);
        let answer = send(&mock, post("/v1/chat/completions", &body)).await;
        assert_eq!(answer.status, 400, "{fields}: {}", answer.text);
        let error = answer.error();
        assert_eq!((error["param"].as_str(), error["code"].as_str()), (Some(*param), Some(*code)), "{fields}: {error}");
        assert_eq!(error["type"], "invalid_request_error", "{fields}");
        let root = param.split(['[', '.']).next().unwrap();
        assert!(error["message"].as_str().unwrap().contains(root), "{fields}: {error}");
    }
    assert_eq!(mock.counts().generations, 0);
}

#[tokio::test]
async fn a_bad_field_of_the_other_routes_is_named() {
    let cases = [
        ("/v1/completions", r#"{"model": "m"}"#, 400, "prompt", "missing_required_parameter"),
        ("/v1/completions", r#"{"model": "m", "prompt": []}"#, 400, "prompt", "invalid_value"),
        ("/v1/completions", r#"{"model": "m", "prompt": [[]]}"#, 400, "prompt", "invalid_type"),
        ("/v1/completions", r#"{"model": "m", "prompt": {}}"#, 400, "prompt", "invalid_type"),
        ("/v1/completions", r#"{"model": "m", "prompt": [1, -1]}"#, 400, "prompt", "invalid_type"),
        ("/v1/completions", r#"{"model": "m", "prompt": ["a", 1]}"#, 400, "prompt", "invalid_type"),
        ("/v1/completions", r#"{"model": "m", "prompt": "a", "logprobs": true}"#, 400, "logprobs", "invalid_type"),
        ("/v1/completions", r#"{"model": "m", "prompt": "a", "logprobs": 21}"#, 400, "logprobs", "invalid_value"),
        ("/v1/completions", r#"{"model": "m", "prompt": "a", "max_tokens": -1}"#, 400, "max_tokens", "invalid_value"),
        (
            "/v1/completions",
            r#"{"model": "m", "prompt": "a", "suffix": "b", "echo": true, "logprobs": 0}"#,
            400,
            "echo",
            "unsupported_value",
        ),
        ("/v1/completions", r#"{"model": "m", "prompt": [1, 2], "suffix": "b"}"#, 400, "suffix", "unsupported_value"),
        ("/v1/completions", r#"{"model": "m", "prompt": "a", "best_of": 2}"#, 400, "best_of", "unsupported_value"),
        ("/v1/completions", r#"{"model": "gone", "prompt": "a"}"#, 404, "model", "model_not_found"),
        ("/v1/embeddings", r#"{"model": "m"}"#, 400, "input", "missing_required_parameter"),
        ("/v1/embeddings", r#"{"model": "m", "input": "a", "encoding_format": "hex"}"#, 400, "encoding_format", "invalid_value"),
        ("/v1/embeddings", r#"{"model": "m", "input": "a", "dimensions": 0}"#, 400, "dimensions", "invalid_value"),
        ("/tokenize", r#"{"model": "m"}"#, 400, "messages", "missing_required_parameter"),
        ("/detokenize", r#"{"model": "m"}"#, 400, "tokens", "missing_required_parameter"),
        ("/detokenize", r#"{"model": "m", "tokens": ["a"]}"#, 400, "tokens", "invalid_type"),
        ("/models/unload", r#"{}"#, 400, "model_id", "missing_required_parameter"),
    ];
    let mock = talker();
    for (path, body, status, param, code) in cases {
        let answer = send(&mock, post(path, body)).await;
        let error = answer.error();
        assert_eq!(
            (answer.status.as_u16(), error["param"].as_str(), error["code"].as_str()),
            (status, Some(param), Some(code)),
            "{body}: {error}"
        );
    }
}

#[tokio::test]
async fn a_bad_load_names_the_field_and_what_was_expected() {
    let cases = [
        (r#"{"model_id": "m", "quantum": "q4k"}"#, "quantum", "expected one of"),
        (r#"{"model_id": 5}"#, "model_id", "string"),
        (r#"{"model_id": "m", "context": "long"}"#, "context", "expected usize"),
        (r#"{"model_id": "m", "devices": 0}"#, "devices", "sequence"),
    ];
    for (body, param, says) in cases {
        let answer = send(&talker(), post("/models/load", body)).await;
        let error = answer.error();
        assert_eq!((answer.status.as_u16(), error["param"].as_str()), (400, Some(param)), "{error}");
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
    }
}

#[tokio::test]
async fn what_is_no_json_object_is_a_400() {
    let deep = format!("{{\"messages\": {}1{}}}", "[".repeat(5000), "]".repeat(5000));
    let bodies: [&[u8]; 8] =
        [b"", b"{", b"[]", b"\"text\"", b"model=m&messages=x", b"{\"model\": \"\\ud800\"}", b"{\"model\": \"\xff\"}", deep.as_bytes()];
    for body in bodies {
        let request = Request::post("/v1/chat/completions").body(Body::from(body.to_vec())).unwrap();
        let answer = send(&talker(), request).await;
        assert_eq!((answer.status.as_u16(), answer.error()["type"].as_str()), (400, Some("invalid_request_error")), "{}", answer.text);
    }
}

#[tokio::test]
async fn unknown_and_null_fields_are_ignored_whatever_the_content_type() {
    let body = r#"{"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "x"}], "user": "u",
        "store": true, "metadata": {"a": 1}, "service_tier": "auto", "temperature": null, "stop": null, "n": null, "tools": null,
        "response_format": {"type": "text"}, "tool_choice": "auto", "stream_options": null, "logit_bias": null, "frobnicate": []}"#;
    for content_type in ["application/json", "application/x-www-form-urlencoded", "text/plain; charset=utf-8"] {
        let mut request = post("/v1/chat/completions", body);
        request.headers_mut().insert("content-type", content_type.parse().unwrap());
        assert_eq!(send(&talker(), request).await.status, 200, "{content_type}");
    }
    assert_eq!(send(&talker(), post("/v1/chat/completions", body)).await.status, 200);
}

#[tokio::test]
async fn unknown_routes_and_methods_answer_in_json() {
    let cases = [
        (Method::GET, "/v1/nothing", 404, "unknown_url"),
        (Method::GET, "/models/m/elsewhere", 404, "unknown_url"),
        (Method::GET, "/v1/chat/completions", 405, "method_not_allowed"),
        (Method::GET, "/models/load", 405, "method_not_allowed"),
        (Method::POST, "/health", 405, "method_not_allowed"),
        (Method::GET, "/v1/models/none/such", 404, "model_not_found"),
    ];
    for (method, path, status, code) in cases {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let answer = send(&talker(), request).await;
        assert_eq!((answer.status.as_u16(), answer.error()["code"].as_str()), (status, Some(code)), "{path}");
        assert!(answer.header("x-request-id").is_some());
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_a_413_announced_or_not() {
    let limits = ApiLimits { body_bytes_max: 64, ..ApiLimits::default() };
    let long = "x".repeat(65);
    let announced = Request::post("/v1/completions").header("content-length", "65").body(Body::from(long.clone())).unwrap();
    let chunks = futures::stream::iter(long.into_bytes()).map(|byte| Ok::<_, std::io::Error>(Bytes::from(vec![byte])));
    let chunked = Request::post("/v1/completions").body(Body::from_stream(chunks)).unwrap();
    for request in [announced, chunked] {
        let answer = read(open_with(&talker(), limits, request).await).await;
        assert_eq!((answer.status.as_u16(), answer.error()["code"].as_str()), (413, Some("request_too_large")));
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_is_a_408() {
    let limits = ApiLimits { body_wait_max: Duration::from_secs(5), ..ApiLimits::default() };
    let body = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
    let request = Request::post("/v1/completions").body(body).unwrap();
    assert_eq!(read(open_with(&talker(), limits, request).await).await.status, 408);
}
