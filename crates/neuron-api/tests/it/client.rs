//! The typed client against a mock behind a real socket.

use std::time::Duration;

use cortex_core::openai::ChatFold;
use cortex_core::{Capability, ModelReport, ModelSpec, ModelStatus, UnloadRequest};
use neuron_api::mock::{Faults, MockConfig, MockModel, MockNeuron};
use neuron_api::{Client, ClientError, ClientTimeouts};
use serde_json::{Value, json};

use crate::support::{hello, talker};

fn client(endpoint: &str) -> Client {
    Client::new(endpoint, ClientTimeouts::default())
}

fn chat() -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": true})
}

#[tokio::test]
async fn a_node_is_asked_and_told() {
    let server = MockNeuron::new(MockConfig::new([hello(), MockModel::available("Org/Cold")]).named("beast")).serve().await.unwrap();
    let client = client(&format!("{}/", server.endpoint()));
    assert_eq!(client.discovery().await.unwrap().hostname, "beast");
    assert!(client.health().await.unwrap().ready);
    let report = client.load(&ModelSpec::new("Org/Cold")).await.unwrap();
    assert_eq!((report.status, report.capabilities), (ModelStatus::Loaded, vec![Capability::Chat]));
    assert!(client.models().await.unwrap().iter().all(ModelReport::is_loaded));
    client.unload(&UnloadRequest { model_id: "Org/Cold".into(), generation: None }).await.unwrap();
    assert_eq!(client.models().await.unwrap()[0].status, ModelStatus::Available);
}

#[tokio::test]
async fn refusals_are_typed() {
    let server = talker().serve().await.unwrap();
    let stale = ModelSpec { generation: Some(1), ..ModelSpec::new("m") };
    let client = client(&server.endpoint());
    client.load(&ModelSpec { generation: Some(2), ..ModelSpec::new("m") }).await.unwrap();
    let ClientError::Status(error) = client.load(&stale).await.unwrap_err() else { panic!() };
    assert_eq!((error.status, error.body.error.code.as_deref()), (409, Some("stale_generation")));

    server.mock.set_faults("m", Faults { overloaded: Some(9), ..Faults::default() });
    let ClientError::Status(error) = client.chat(&chat()).await.unwrap_err() else { panic!() };
    assert_eq!((error.status, error.retry_after_s), (429, Some(9)));

    let missing = client.get::<Value>("/nothing").await.unwrap_err();
    assert_eq!(missing.to_string(), "There is no GET /nothing here.");
    assert!(matches!(client.get::<u32>("/health").await, Err(ClientError::Protocol { .. })));
}

#[tokio::test]
async fn a_node_that_is_gone_is_unreachable() {
    let server = talker().serve().await.unwrap();
    let client = client(&server.endpoint());
    client.health().await.unwrap();
    drop(server);
    let error = client.health().await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    assert!(matches!(self::client("no url").health().await, Err(ClientError::Unreachable { .. })));
}

#[tokio::test]
async fn chunks_come_typed_and_fold_into_the_answer() {
    let server = talker().serve().await.unwrap();
    let mut stream = client(&server.endpoint()).with_bearer("key").chat(&chat()).await.unwrap();
    let mut fold = ChatFold::default();
    while let Some(chunk) = stream.next_chunk().await {
        fold.push(chunk.unwrap());
    }
    assert_eq!(fold.finish().unwrap().choices[0].message.content.as_deref(), Some("Hello world!"));
}

#[tokio::test]
async fn a_stream_that_breaks_ends_in_an_error() {
    let server = talker().serve().await.unwrap();
    let client = client(&server.endpoint());
    let last = async |faults: Faults| {
        server.mock.set_faults("m", faults);
        let mut stream = client.chat(&chat()).await.unwrap();
        let mut chunks = Vec::new();
        while let Some(chunk) = stream.next_chunk().await {
            chunks.push(chunk);
        }
        (chunks.len(), chunks.pop().unwrap().unwrap_err())
    };
    let (count, error) = last(Faults { die_after: Some(1), ..Faults::default() }).await;
    assert_eq!((count, matches!(error, ClientError::Status(_))), (3, true), "{error}");
    let (count, error) = last(Faults { cut_after: Some(1), ..Faults::default() }).await;
    assert_eq!((count, matches!(error, ClientError::Unreachable { .. })), (3, true), "{error}");
}

#[tokio::test]
async fn a_client_that_leaves_cancels() {
    let server = talker().serve().await.unwrap();
    server.mock.set_faults("m", Faults { hang: true, ..Faults::default() });
    let stream = client(&server.endpoint()).chat(&chat()).await.unwrap();
    assert_eq!(server.mock.counts().active, 1);
    drop(stream);
    let counts = server.mock.wait_for(|counts| counts.active == 0).await;
    assert_eq!(counts.cancelled, 1);
}

#[tokio::test]
async fn waiting_has_a_limit() {
    let server = talker().serve().await.unwrap();
    server.mock.set_faults("m", Faults { hang_admission: true, ..Faults::default() });
    let timeouts = ClientTimeouts { action: Duration::from_millis(20), ..ClientTimeouts::default() };
    let error = Client::new(&server.endpoint(), timeouts).chat(&chat()).await.unwrap_err();
    assert!(error.to_string().contains("no answer within 20ms"), "{error}");
}
