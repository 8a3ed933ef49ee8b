//! What reaches the harness.

use cortex_core::{ChatPrompt, GenerateRequest, Prompt, SamplingRequest};
use serde_json::{Value, json};

use crate::support::{post, send, talker, with};

async fn requests(fields: Value) -> Vec<GenerateRequest> {
    let mock = talker();
    let body = with(json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]}), fields);
    let answer = send(&mock, post("/v1/chat/completions", body)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    mock.requests()
}

async fn chat_prompt(fields: Value) -> ChatPrompt {
    match requests(fields).await.remove(0).prompt {
        Prompt::Chat(chat) => chat,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_option_reaches_the_harness() {
    let request = requests(json!({
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "presence_penalty": 1, "frequency_penalty": -1,
        "repetition_penalty": 1.5, "logit_bias": {"7": -100, "9": 1.5}, "seed": 11, "ignore_eos": true, "stop": "x",
        "max_tokens": 5, "max_completion_tokens": 6, "logprobs": true, "top_logprobs": 3
    }))
    .await
    .remove(0);
    let sampling = SamplingRequest {
        temperature: Some(0.5),
        top_p: Some(0.9),
        top_k: Some(40),
        min_p: Some(0.1),
        presence_penalty: Some(1.0),
        frequency_penalty: Some(-1.0),
        repetition_penalty: Some(1.5),
        logit_bias: vec![(7, -100.0), (9, 1.5)],
        seed: Some(11),
        ignore_eos: true,
    };
    assert_eq!(request.sampling, sampling);
    assert_eq!((request.stop, request.max_tokens, request.logprobs), (vec!["x".to_owned()], Some(6), Some(3)));
    assert_eq!((request.model.as_str(), request.request_id.as_str()), ("m", "r-1"));
}

#[tokio::test]
async fn nothing_said_leaves_the_model_its_defaults() {
    let request = requests(json!({})).await.remove(0);
    assert_eq!(request.sampling, SamplingRequest::default());
    assert_eq!((request.stop.len(), request.max_tokens, request.logprobs), (0, None, None));
}

#[tokio::test]
async fn choices_have_consecutive_seeds() {
    let seeds = |requests: Vec<GenerateRequest>| requests.into_iter().map(|request| request.sampling.seed).collect::<Vec<_>>();
    assert_eq!(seeds(requests(json!({"n": 3, "seed": 41})).await), [Some(41), Some(42), Some(43)]);
    assert_eq!(seeds(requests(json!({"n": 2})).await), [None, None]);
    assert_eq!(seeds(requests(json!({"n": 2, "seed": -1})).await), [Some(u64::MAX), Some(0)]);
}

#[tokio::test]
async fn messages_and_tools_reach_the_template_as_they_came() {
    let messages = json!([
        {"role": "system", "content": "s", "cache_control": {"type": "x"}},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}, {"type": "text", "text": "t"}]},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "tool_call_id": "1", "content": "r"}
    ]);
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let prompt = chat_prompt(json!({"messages": messages, "tools": tools})).await;
    assert_eq!(json!(prompt.messages), messages);
    assert_eq!(json!(prompt.tools), tools);
    assert!(prompt.add_generation_prompt && !prompt.continue_final_message);
}

#[tokio::test]
async fn the_template_gets_its_switches() {
    let cases = [
        (json!({"tools": [{}], "tool_choice": "none"}), "tools", json!(null)),
        (json!({"tools": []}), "tools", json!(null)),
        (json!({"chat_template_kwargs": {"enable_thinking": false, "x": [1]}}), "kwargs", json!({"enable_thinking": false, "x": [1]})),
        (json!({"reasoning_effort": "none"}), "kwargs", json!({"enable_thinking": false, "reasoning_effort": "none"})),
        (json!({"reasoning_effort": "high"}), "kwargs", json!({"enable_thinking": true, "reasoning_effort": "high"})),
        (
            json!({"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": false}}),
            "kwargs",
            json!({"enable_thinking": false, "reasoning_effort": "high"}),
        ),
        (json!({"continue_final_message": true}), "prompt", json!([false, true])),
        (json!({"add_generation_prompt": false}), "prompt", json!([false, false])),
    ];
    for (fields, what, expected) in cases {
        let prompt = chat_prompt(fields.clone()).await;
        let got = match what {
            "tools" => json!(prompt.tools),
            "kwargs" => json!(prompt.template_kwargs),
            _ => json!([prompt.add_generation_prompt, prompt.continue_final_message]),
        };
        assert_eq!(got, expected, "{fields}");
    }
}
