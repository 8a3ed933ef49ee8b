//! Where requests go when there are several places, and what they do when there is none.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use cortex_core::config::Millis;
use cortex_core::{PlacedModel, Placement, model::ModelSpec};
use cortex_gateway::Gateway;
use neuron_api::mock::{Faults, MockConfig, MockModel, MockNeuron};
use serde_json::json;

use crate::rig::{Rig, chat, config, streamed, until};

const QUEUED: &str = "cortex_queue_length{model=\"m\"}";

/// A gateway in front of one node with one place, taken by a request that hangs.
async fn full(queue_len_max: usize) -> (Rig, http::Response<hyper::body::Incoming>) {
    let mock = MockNeuron::new(MockConfig { active_max: 1, ..MockConfig::new([MockModel::loaded("m")]) });
    let node = mock.serve().await.unwrap();
    let mut config = config([node.addr]);
    config.timeouts.queue_ms_max = Millis::new(60_000);
    config.timeouts.keep_alive_ms = Millis::new(1);
    config.limits.queue_len_max = queue_len_max.try_into().unwrap();
    let rig = Rig { gateway: Gateway::start(config).await.unwrap(), nodes: vec![node] };
    rig.mock(0).set_faults("m", Faults { hang: true, ..Faults::default() });
    let taken = rig.client().open_chat(&streamed("m", "hold")).await;
    rig.mock(0).wait_for(|counts| counts.active == 1).await;
    rig.mock(0).set_faults("m", Faults::default());
    (rig, taken)
}

#[tokio::test]
async fn a_request_waits_for_a_place_and_the_urgent_go_first() {
    let (rig, taken) = full(8).await;
    let done = Arc::new(Mutex::new(Vec::new()));
    let mut requests = Vec::new();
    for (waiting, (name, tier)) in [("patient", "flex"), ("first", "auto"), ("second", "auto")].into_iter().enumerate() {
        let (client, done) = (rig.client(), Arc::clone(&done));
        let mut body = chat("m", name);
        body["service_tier"] = tier.into();
        requests.push(tokio::spawn(async move {
            let reply = client.chat(&body).await;
            done.lock().unwrap().push(reply.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned());
        }));
        until(async || rig.metric(QUEUED).await == Some(waiting as f64 + 1.0)).await;
    }
    drop(taken);
    for request in requests {
        request.await.unwrap();
    }
    assert_eq!(*done.lock().unwrap(), ["first", "second", "patient"]);
    assert_eq!(rig.mock(0).counts().active_peak, 1);
    until(async || rig.metric(QUEUED).await.is_none()).await;
}

#[tokio::test]
async fn a_full_line_refuses_and_a_place_left_is_given_away() {
    let (rig, taken) = full(1).await;
    let client = rig.client();
    let waiting = tokio::spawn(async move { client.chat(&chat("m", "hi")).await.status });
    until(async || rig.metric(QUEUED).await == Some(1.0)).await;
    let refused = rig.client().chat(&chat("m", "hi")).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (429, "queue_full"));
    assert!(refused.headers.contains_key("retry-after"));
    waiting.abort();
    until(async || rig.metric(QUEUED).await.is_none()).await;
    let client = rig.client();
    let waiting = tokio::spawn(async move { client.chat(&chat("m", "hi")).await.status });
    until(async || rig.metric(QUEUED).await == Some(1.0)).await;
    drop(taken);
    assert_eq!(waiting.await.unwrap(), 200);
}

#[tokio::test]
async fn a_storm_of_refusals_is_not_made_worse() {
    const REQUESTS: usize = 300;
    let rig = Rig::start([vec![MockModel::loaded("m")], vec![MockModel::loaded("m")], vec![MockModel::loaded("m")]]).await;
    for (node, seconds) in [(0, 9), (1, 4), (2, 7)] {
        rig.mock(node).set_faults("m", Faults { overloaded: Some(seconds), ..Faults::default() });
    }
    let started = Instant::now();
    let mut hopped = 0;
    for _ in 0..REQUESTS {
        let reply = rig.client().chat(&chat("m", "hi")).await;
        assert_eq!(reply.status, 429);
        let seconds: u64 = reply.headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!([4, 7, 9].contains(&seconds));
        hopped += usize::from(seconds == 4);
    }
    let attempts: usize = (0..3).map(|node| rig.mock(node).counts().refused).sum();
    let allowed = REQUESTS + REQUESTS / 10 + 11 + started.elapsed().as_secs() as usize;
    assert!(attempts <= allowed, "{attempts} attempts for {REQUESTS} requests, {allowed} allowed");
    // Equal prompts have one home, and one request in ten may go on from there: some of these to the node that names the soonest time.
    assert!(hopped >= REQUESTS / 50, "the soonest time that any node named is told: {hopped} times");
    assert!(rig.metric("cortex_retries_refused_total").await > Some(0.0));
}

#[tokio::test]
async fn a_conversation_stays_on_its_node() {
    let rig = Rig::start([vec![MockModel::loaded("m")], vec![MockModel::loaded("m")], vec![MockModel::loaded("m")]]).await;
    let served = || [0, 1, 2].map(|node| rig.mock(node).counts().finished);
    for talk in 0..12 {
        let mut messages = vec![json!({"role": "user", "content": format!("talk {talk}")})];
        let mut before = served();
        let mut homes = Vec::new();
        for turn in 0..4 {
            messages.push(json!({"role": "assistant", "content": "go on"}));
            messages.push(json!({"role": "user", "content": format!("turn {turn}")}));
            assert_eq!(rig.client().chat(&json!({"model": "m", "messages": messages})).await.status, 200);
            let now = served();
            homes.push((0..3).find(|node| now[*node] != before[*node]).unwrap());
            before = now;
        }
        assert!(homes.iter().all(|home| *home == homes[0]), "{homes:?}");
    }
    assert!(served().iter().all(|count| *count > 0), "different conversations are spread: {:?}", served());
}

#[tokio::test]
async fn a_model_that_cannot_answer_is_stood_in_for() {
    let rig = Rig::with([vec![MockModel::loaded("m"), MockModel::loaded("n")]], |config| {
        let placed = |id: &str| PlacedModel { spec: ModelSpec::new(id), nodes: Vec::new() };
        config.placement = Placement::new([placed("m"), placed("n")], [("alias".to_owned(), "m".into())].into())
            .with_fallbacks([("m".into(), vec!["gone".into(), "n".into()])].into());
    })
    .await;
    rig.mock(0).set_faults("m", Faults { overloaded: Some(9), ..Faults::default() });
    for body in [chat("m", "hi"), chat("alias", "hi"), streamed("alias", "hi")] {
        let reply = rig.client().chat(&body).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert!(reply.text().contains("\"model\":\"n\""), "{}", reply.text());
    }
    assert_eq!(rig.metric("cortex_fallbacks_total{fallback=\"n\",model=\"m\"}").await, Some(3.0));
    let wrong = rig.client().chat(&json!({"model": "m", "messages": 7})).await;
    assert_eq!(wrong.status, 400, "a request at fault is not sent to another model");
}
