//! Streams in time: heartbeats, errors in the middle, and what a client that leaves sets free.

use std::time::Duration;

use axum::body::Body;
use axum::http::Response;
use http_body_util::BodyExt;
use neuron_api::mock::{Faults, MockConfig, MockModel, MockNeuron};
use serde_json::json;
use tokio::time::Instant;

use crate::support::{hello, open, post, read, send};

fn mock(change: impl FnOnce(&mut MockModel)) -> MockNeuron {
    let mut model = hello();
    change(&mut model);
    MockNeuron::new(MockConfig::new([model]))
}

async fn stream(mock: &MockNeuron, n: u32) -> Response<Body> {
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": true, "n": n});
    let response = open(mock, post("/v1/chat/completions", body)).await;
    assert_eq!(response.status(), 200);
    response
}

async fn next(response: &mut Response<Body>) -> String {
    let frame = response.body_mut().frame().await.unwrap().unwrap();
    String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_silent_prefill_pings_each_second() {
    let mock = mock(|model| model.prefill_time = Duration::from_millis(3500));
    let begun = Instant::now();
    let mut response = stream(&mock, 1).await;
    for second in 1..=3 {
        assert_eq!(next(&mut response).await, ": ping\n\n");
        assert_eq!(begun.elapsed().as_secs(), second);
    }
    assert!(next(&mut response).await.contains("\"role\":\"assistant\""));
    assert_eq!(begun.elapsed().as_millis() / 10, 350);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_speaks_does_not_ping() {
    let mock = mock(|model| model.token_time = Duration::from_millis(900));
    let answer = read(stream(&mock, 1).await).await;
    assert!(!answer.text.contains("ping"), "{}", answer.text);
    assert!(answer.text.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn the_first_chunk_tells_the_prompts_tokens_to_those_who_ask() {
    let mock = mock(|model| model.cached_tokens = 3);
    for asks in [false, true] {
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": true,
            "stream_options": {"include_usage": true, "prompt_usage": asks}});
        let text = send(&mock, post("/v1/chat/completions", body)).await.text;
        let chunks = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line.strip_prefix("data: ")?).ok());
        let mut usages: Vec<_> = chunks.map(|chunk| chunk["usage"].clone()).collect();
        let total = usages.pop().unwrap();
        let mut prompt = total.clone();
        prompt["completion_tokens"] = 0.into();
        prompt["total_tokens"] = total["prompt_tokens"].clone();
        assert_eq!(usages[0], if asks { prompt } else { serde_json::Value::Null }, "{text}");
        assert!(usages[1..].iter().all(serde_json::Value::is_null), "{text}");
    }
}

#[tokio::test]
async fn nothing_is_shown_before_the_first_token() {
    let mock = mock(|model| model.faults.die_after = Some(0));
    let answer = read(stream(&mock, 1).await).await;
    assert!(answer.text.starts_with("data: {\"error\":"), "{}", answer.text);
}

#[tokio::test]
async fn an_error_in_the_middle_is_an_event_and_no_done_follows() {
    let mock = mock(|model| model.faults.die_after = Some(2));
    let answer = read(stream(&mock, 1).await).await;
    let frames: Vec<_> = answer.text.split_terminator("\n\n").collect();
    assert_eq!(frames.len(), 4, "{}", answer.text); // role, two tokens, the error
    assert!(frames[3].starts_with("data: {\"error\":{\"message\":\"internal error: the mock was told to die\""), "{}", frames[3]);
    assert!(answer.trailers.is_none());
    assert_eq!((mock.counts().died, mock.counts().active), (1, 0));
}

#[tokio::test]
async fn an_error_in_one_choice_cancels_the_others() {
    let mock = mock(|model| model.faults.die_after = Some(1));
    let mut response = stream(&mock, 2).await;
    while let Some(frame) = response.body_mut().frame().await {
        frame.unwrap();
    }
    let counts = mock.wait_for(|counts| counts.active == 0).await;
    assert_eq!((counts.died, counts.cancelled), (1, 1));
}

#[tokio::test]
async fn an_error_without_streaming_is_a_status() {
    let mock = mock(|model| model.faults.die_after = Some(2));
    let answer = send(&mock, post("/v1/completions", json!({"model": "m", "prompt": "Hi"}))).await;
    assert_eq!((answer.status.as_u16(), answer.error()["code"].as_str()), (500, Some("internal_error")));
}

#[tokio::test]
async fn refusals_come_as_statuses_before_the_stream() {
    let mock = mock(|model| model.context = 16);
    let ask = |content: &str| {
        let body = json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": content}]});
        post("/v1/chat/completions", body)
    };
    let long = send(&mock, ask("far too long")).await;
    assert_eq!((long.status.as_u16(), long.error()["code"].as_str()), (400, Some("context_length_exceeded")));

    mock.set_faults("m", Faults { overloaded: Some(7), ..Faults::default() });
    let busy = send(&mock, ask("")).await;
    assert_eq!((busy.status.as_u16(), busy.header("retry-after")), (429, Some("7")));

    mock.set_ready(false);
    let leaving = send(&mock, ask("")).await;
    assert_eq!((leaving.status.as_u16(), leaving.error()["code"].as_str()), (503, Some("shutting_down")));
    assert_eq!(mock.counts().refused, 3);
}

#[tokio::test]
async fn choices_are_admitted_together_or_not_at_all() {
    let mock = MockNeuron::new(MockConfig { active_max: 2, ..MockConfig::new([hello()]) });
    let answer = send(&mock, post("/v1/completions", json!({"model": "m", "prompt": "Hi", "n": 3, "stream": true}))).await;
    assert_eq!(answer.status, 429);
    assert_eq!((mock.counts().active, mock.counts().cancelled), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_stream_cancels_in_every_phase() {
    let slow = |model: &mut MockModel| {
        model.prefill_time = Duration::from_secs(10);
        model.token_time = Duration::from_secs(10);
    };
    for frames in [0, 1, 15] {
        let mock = mock(slow);
        let mut response = stream(&mock, 2).await;
        for _ in 0..frames {
            next(&mut response).await;
        }
        assert_eq!(mock.counts().active, 2);
        drop(response);
        assert_eq!((mock.counts().active, mock.counts().cancelled), (0, 2), "after {frames} frames");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_whole_request_cancels() {
    let mock = mock(|model| model.faults.hang = true);
    let request = post("/v1/completions", json!({"model": "m", "prompt": "Hi"}));
    let waiting = tokio::time::timeout(Duration::from_secs(60), send(&mock, request)).await;
    assert!(waiting.is_err());
    assert_eq!((mock.counts().active, mock.counts().cancelled), (0, 1));
}
