//! Golden answers: what exactly goes over the wire, whole and streamed.

use insta::assert_snapshot;
use neuron_api::mock::{MockConfig, MockModel, MockNeuron, Said};
use serde_json::{Value, json};

use crate::support::{Answer, hello, post, send, talker, with};

async fn chat(fields: Value) -> Answer {
    let body = with(json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]}), fields);
    send(&talker(), post("/v1/chat/completions", body)).await
}

async fn complete(fields: Value) -> Answer {
    let body = with(json!({"model": "m", "prompt": "Hi"}), fields);
    send(&talker(), post("/v1/completions", body)).await
}

#[tokio::test]
async fn a_whole_chat_answer() {
    assert_snapshot!(chat(json!({})).await.golden());
}

#[tokio::test]
async fn a_streamed_chat_answer() {
    let answer = chat(json!({"stream": true})).await;
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    assert_snapshot!(answer.golden());
}

#[tokio::test]
async fn a_streamed_chat_answer_with_usage_and_length() {
    assert_snapshot!(chat(json!({"stream": true, "stream_options": {"include_usage": true}, "max_tokens": 2})).await.golden());
}

#[tokio::test]
async fn a_whole_chat_answer_with_logprobs_of_two_choices() {
    assert_snapshot!(chat(json!({"n": 2, "logprobs": true, "top_logprobs": 2, "max_tokens": 1})).await.golden());
}

/// Thinks, speaks, and calls two tools.
async fn act(fields: Value) -> Answer {
    let call = |city: &str| Said::ToolCall { name: "get_weather".into(), arguments: json!({ "city": city }).to_string() };
    let said = [Said::Reasoning("Two".into()), Said::Reasoning(" cities.".into()), Said::Text("Wait".into()), call("Rome"), call("Oslo")];
    let mock = MockNeuron::new(MockConfig::new([MockModel::loaded("m").acting(said)]));
    let body = with(json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]}), fields);
    send(&mock, post("/v1/chat/completions", body)).await
}

#[tokio::test]
async fn a_whole_answer_that_thinks_and_calls_tools() {
    assert_snapshot!(act(json!({})).await.golden());
}

#[tokio::test]
async fn a_streamed_answer_that_thinks_and_calls_tools() {
    assert_snapshot!(act(json!({"stream": true, "logprobs": true})).await.golden());
}

#[tokio::test]
async fn content_is_null_only_where_something_else_was_said() {
    let content = |fields: Value| async move { act(fields).await.json()["choices"][0]["message"]["content"].clone() };
    assert_eq!(content(json!({"max_tokens": 2})).await, json!(null));
    assert_eq!(content(json!({"max_tokens": 3})).await, json!("Wait"));
    let silent = MockNeuron::new(MockConfig::new([MockModel::loaded("m").saying([""; 0])]));
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
    assert_eq!(send(&silent, post("/v1/chat/completions", body)).await.json()["choices"][0]["message"]["content"], json!(""));
}

#[tokio::test]
async fn a_stop_text_ends_the_answer_and_is_not_in_it() {
    let answer = chat(json!({"stop": ["rld"]})).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "Hello wo");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn a_whole_completion_with_logprobs() {
    assert_snapshot!(complete(json!({"logprobs": 1})).await.golden());
}

#[tokio::test]
async fn a_streamed_completion_with_logprobs_and_usage() {
    assert_snapshot!(complete(json!({"logprobs": 0, "stream": true, "stream_options": {"include_usage": true}})).await.golden());
}

#[tokio::test]
async fn a_prompt_is_scored_in_the_legacy_shape() {
    assert_snapshot!(complete(json!({"prompt": "Hä?", "echo": true, "logprobs": 1, "max_tokens": 1})).await.golden());
}

#[tokio::test]
async fn prompts_are_scored_alone_in_a_stream() {
    let asked = json!({"prompt": ["a", [98, 98]], "echo": true, "logprobs": 0, "max_tokens": 0, "stream": true, "stream_options": {"include_usage": true}});
    assert_snapshot!(complete(asked).await.golden());
}

#[tokio::test]
async fn each_prompt_has_its_choices_and_counts_once() {
    let mut model = hello();
    model.answer = neuron_api::mock::Answer::Echo;
    let mock = MockNeuron::new(MockConfig::new([model]));
    let body = json!({"model": "m", "prompt": ["a", [98, 98]], "n": 2});
    let answer = send(&mock, post("/v1/completions", body)).await.json();
    let choices = answer["choices"].as_array().unwrap();
    let texts: Vec<_> = choices.iter().map(|choice| (choice["index"].as_u64().unwrap(), choice["text"].as_str().unwrap())).collect();
    assert_eq!(texts, [(0, "a"), (1, "a"), (2, "bb"), (3, "bb")]);
    assert_eq!((&answer["usage"]["prompt_tokens"], &answer["usage"]["completion_tokens"]), (&json!(3), &json!(4)));
}

#[tokio::test]
async fn each_answer_begins_with_its_prompt_where_that_was_asked_for() {
    for (prompt, texts) in [
        (json!("Hi, "), vec!["Hi, Hello world!", "Hi, Hello world!"]),
        (json!(["a", [98, 98]]), vec!["aHello world!", "aHello world!", "bbHello world!", "bbHello world!"]),
    ] {
        let whole = complete(json!({"prompt": prompt, "echo": true, "n": 2})).await;
        let choices = whole.json()["choices"].as_array().unwrap().clone();
        assert_eq!(choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect::<Vec<_>>(), texts);
        let mut streamed = vec![String::new(); texts.len()];
        let answer = complete(json!({"prompt": prompt, "echo": true, "n": 2, "stream": true})).await.golden();
        let read = |event: cortex_core::sse::SseEvent| {
            let chunk: Value = serde_json::from_str(&event.data).unwrap_or_default();
            for choice in chunk["choices"].as_array().into_iter().flatten() {
                streamed[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
            }
        };
        cortex_core::sse::SseParser::new(1 << 20).push(answer.as_bytes(), read).unwrap();
        assert_eq!(streamed, texts);
    }
}

#[tokio::test]
async fn a_suffix_asks_for_what_comes_before_it() {
    let mock = MockNeuron::new(MockConfig::new([MockModel::loaded("m")]));
    let body = json!({"model": "m", "prompt": "fn one() ", "suffix": " }", "echo": true});
    let answer = send(&mock, post("/v1/completions", body)).await.json();
    assert_eq!(answer["choices"][0]["text"], "fn one() fn one() … }");
}

#[tokio::test]
async fn streamed_chunks_fold_into_the_whole_answer() {
    let fields = [json!({}), json!({"n": 3}), json!({"n": 2, "logprobs": true, "top_logprobs": 1}), json!({"max_tokens": 1})];
    for (fields, acting) in fields.iter().flat_map(|fields| [(fields.clone(), false), (fields.clone(), true)]) {
        let ask = async |fields| if acting { act(fields).await } else { chat(fields).await };
        let whole = ask(fields.clone()).await;
        let streamed = ask(with(fields, json!({"stream": true, "stream_options": {"include_usage": true}}))).await;
        let mut fold = cortex_core::openai::ChatFold::default();
        let mut parser = cortex_core::sse::SseParser::new(1 << 20);
        parser
            .push(streamed.golden().as_bytes(), |event| {
                if event.data != "[DONE]" {
                    fold.push(serde_json::from_str(&event.data).unwrap());
                }
            })
            .unwrap();
        let whole: cortex_core::openai::ChatCompletion = serde_json::from_str(&whole.golden()).unwrap();
        assert_eq!(fold.finish(), Some(whole));
    }
}

#[tokio::test]
async fn the_request_id_is_taken_or_drawn() {
    let answer = chat(json!({})).await;
    assert_eq!(answer.header("x-request-id"), Some("r-1"));
    assert_eq!(answer.json()["id"], "chatcmpl-r-1");
    for bad in ["", "two words", &"x".repeat(129)] {
        let mut request = post("/v1/completions", json!({"model": "m", "prompt": "Hi"}));
        request.headers_mut().insert("x-request-id", bad.parse().unwrap());
        let answer = send(&talker(), request).await;
        let drawn = answer.header("x-request-id").unwrap();
        assert_eq!(drawn.len(), 32, "{drawn}");
        assert_eq!(answer.json()["id"], format!("cmpl-{drawn}"));
    }
}

#[tokio::test]
async fn usage_is_in_a_header_or_a_trailer_for_those_who_take_trailers() {
    for stream in [false, true] {
        for te in [None, Some("trailers"), Some("gzip, Trailers")] {
            let mut request = post("/v1/completions", json!({"model": "m", "prompt": "Hi", "stream": stream, "n": 2}));
            if let Some(te) = te {
                request.headers_mut().insert("te", te.parse().unwrap());
            }
            let answer = send(&talker(), request).await;
            let place = if stream { answer.trailers.as_ref() } else { Some(&answer.headers) };
            let usage = place.and_then(|headers| headers.get("x-neuron-usage")).map(|value| value.to_str().unwrap());
            assert_eq!(usage, te.map(|_| "prompt=2;cached=0;completion=6"), "stream {stream}, te {te:?}");
            assert_eq!(answer.header("trailer"), if stream { te.map(|_| "x-neuron-usage") } else { None });
        }
    }
}
