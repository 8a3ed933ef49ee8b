//! The whole daemon with the real engine, on checkpoints small enough for any machine.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use cortex_core::{Capability, ModelSpec, ModelStatus, UnloadRequest};
use neuron::{Daemon, NeuronConfig, RunningDaemon};
use neuron_api::{Client, ClientError, ClientTimeouts};
use serde_json::{Value, json};

/// The engine's own parity checkpoints.
fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../neuron-engine/testdata/parity").join(path)
}

/// id, folder and capabilities of what the node may serve.
const MODELS: [(&str, &str, &[Capability]); 3] = [
    ("org/text", "checkpoints/qwen3-dense-untied", &[Capability::Chat]),
    ("eyes", "checkpoints/qwen3-vl", &[Capability::Chat, Capability::Vision]),
    ("vectors", "checkpoints/bert", &[Capability::Embeddings]),
];

async fn node() -> (RunningDaemon, Client) {
    let spec = |(id, folder, _): &(&str, &str, _)| {
        let source = testdata(folder).to_str().expect("UTF-8").to_owned();
        ModelSpec { source: Some(source), context: Some(128), parallel: Some(2), ..ModelSpec::new(*id) }
    };
    let config = NeuronConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        models: MODELS.iter().map(spec).collect(),
        ..NeuronConfig::default()
    };
    let daemon = Daemon::start(config).await.expect("a node");
    let client = Client::new(&format!("http://{}", daemon.addr), ClientTimeouts::default());
    (daemon, client)
}

fn ask(model: &str, content: &Value) -> Value {
    json!({ "model": model, "temperature": 0, "max_tokens": 6, "messages": [{ "role": "user", "content": content }] })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_model_is_described_loaded_asked_and_unloaded() {
    let (daemon, client) = node().await;
    for (report, (id, _, capabilities)) in client.models().await.unwrap().iter().zip(MODELS) {
        assert_eq!((report.id.as_str(), &report.status, &*report.capabilities), (id, &ModelStatus::Available, capabilities));
    }
    let first = client.load(&ModelSpec::new("org/text")).await.unwrap();
    assert_eq!((first.context, first.devices.as_slice()), (Some(128), &["cpu-0".to_owned()][..]));
    assert!(first.memory_used_bytes > 0 && first.parameters.is_some_and(|parameters| parameters > 0));

    let answer: Value = client.post("/v1/chat/completions", &ask("org/text", &json!("hello"))).await.unwrap();
    let again: Value = client.post("/v1/chat/completions", &ask("org/text", &json!("hello"))).await.unwrap();
    assert_eq!(answer["choices"], again["choices"]);
    assert!(answer["usage"]["completion_tokens"].as_u64().is_some_and(|tokens| (1..=6).contains(&tokens)), "{answer}");
    let health = client.health().await.unwrap();
    assert_eq!((health.models[0].running, health.models[0].waiting), (0, 0));

    client.unload(&UnloadRequest { model_id: "org/text".into(), generation: None }).await.unwrap();
    assert_eq!(client.models().await.unwrap()[0].memory_used_bytes, 0);
    client.load(&ModelSpec::new("org/text")).await.unwrap();
    let reloaded: Value = client.post("/v1/chat/completions", &ask("org/text", &json!("hello"))).await.unwrap();
    assert_eq!(answer["choices"], reloaded["choices"]);
    daemon.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pictures_reach_the_models_that_see_and_no_others() {
    let (daemon, client) = node().await;
    client.load(&ModelSpec::new("eyes")).await.unwrap();
    client.load(&ModelSpec::new("org/text")).await.unwrap();
    let picture = std::fs::read_dir(testdata("images")).unwrap().map(|entry| entry.unwrap().path());
    let picture = picture.filter(|path| path.extension().is_some_and(|kind| kind == "png")).min().expect("a picture");
    let bytes = base64::prelude::BASE64_STANDARD.encode(std::fs::read(picture).unwrap());
    let content = json!([
        { "type": "image_url", "image_url": { "url": format!("data:image/png;base64,{bytes}") } },
        { "type": "text", "text": "what?" },
    ]);
    let answer: Value = client.post("/v1/chat/completions", &ask("eyes", &content)).await.unwrap();
    let blind: Value = client.post("/v1/chat/completions", &ask("eyes", &json!("what?"))).await.unwrap();
    let prompt = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64();
    assert!(prompt(&answer) > prompt(&blind), "{answer} {blind}");

    let error = client.post::<Value>("/v1/chat/completions", &ask("org/text", &content)).await.unwrap_err();
    let ClientError::Status(refusal) = error else { panic!("{error} is no refusal") };
    assert_eq!((refusal.status, refusal.body.error.param.as_deref()), (400, Some("messages[0].content[0]")));
    daemon.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encoder_answers_with_vectors() {
    let (daemon, client) = node().await;
    client.load(&ModelSpec::new("vectors")).await.unwrap();
    let body = json!({ "model": "vectors", "input": ["one", "two"] });
    let answer: Value = client.post("/v1/embeddings", &body).await.unwrap();
    assert_eq!(answer["data"].as_array().map(Vec::len), Some(2));
    assert_ne!(answer["data"][0]["embedding"], answer["data"][1]["embedding"]);
    daemon.shutdown().await;
}

#[tokio::test]
async fn what_is_no_checkpoint_is_named() {
    let (daemon, client) = node().await;
    let empty = tempfile::tempdir().unwrap();
    let cases = [
        (ModelSpec { source: empty.path().to_str().map(str::to_owned), ..ModelSpec::new("empty") }, "config.json"),
        (ModelSpec { quant: Some("q4k".into()), ..ModelSpec::new("org/text") }, "quant = `q4k` is not supported"),
        (ModelSpec { dtype: Some("int3".into()), ..ModelSpec::new("org/text") }, "int3"),
        (ModelSpec { devices: Some(vec![7]), ..ModelSpec::new("org/text") }, "there is no device 7"),
    ];
    for (spec, expected) in cases {
        let error = client.load(&spec).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    daemon.shutdown().await;
}
