//! What `GET /metrics` tells.

use neuron_api::mock::MockModel;

use crate::rig::{Rig, chat, streamed, until};

#[tokio::test]
async fn the_figures_of_whole_and_streamed_answers_are_told() {
    let mut model = MockModel::loaded("m").saying(["a", "b", "c"]);
    model.cached_tokens = 4;
    let rig = Rig::start([vec![model]]).await;
    let prompt_tokens = rig.client().chat(&chat("m", "hi")).await.json()["usage"]["prompt_tokens"].as_f64().unwrap();
    rig.client().chat(&streamed("m", "hi")).await;

    let of = |name: &str, labels: &str| format!("{name}{{{labels}}}");
    let tokens = |direction: &str| of("cortex_tokens_total", &format!("direction=\"{direction}\",model=\"m\",node=\"a\""));
    let expected = [
        (of("cortex_requests_total", "endpoint=\"/v1/chat/completions\",model=\"m\",node=\"a\",outcome=\"ok\""), 2.0),
        (tokens("prompt"), 2.0 * prompt_tokens),
        (tokens("cached"), 8.0),
        (tokens("completion"), 6.0),
        (of("cortex_ttft_seconds_count", "model=\"m\",node=\"a\""), 2.0),
        (of("cortex_request_duration_seconds_count", "model=\"m\",node=\"a\""), 2.0),
        (of("cortex_tokens_per_second_count", "model=\"m\",node=\"a\""), 1.0),
        (of("cortex_requests_in_flight", "model=\"m\",node=\"a\""), 0.0),
        (of("cortex_node_up", "node=\"a\""), 1.0),
    ];
    for (line, value) in expected {
        until(async || rig.metric(&line).await == Some(value)).await;
    }
    let text = rig.metrics().await;
    assert!(text.contains("# HELP cortex_requests_total "), "{text}");
    assert!(text.contains("# TYPE cortex_ttft_seconds histogram"), "{text}");
}

#[tokio::test]
async fn two_gateways_in_one_process_count_apart() {
    let one = Rig::start([vec![MockModel::loaded("m")]]).await;
    let other = Rig::start([vec![MockModel::loaded("m")]]).await;
    one.client().chat(&chat("m", "hi")).await;
    let line = "cortex_requests_total{endpoint=\"/v1/chat/completions\",model=\"m\",node=\"a\",outcome=\"ok\"}";
    until(async || one.metric(line).await == Some(1.0)).await;
    assert_eq!(other.metric(line).await, None);
}
