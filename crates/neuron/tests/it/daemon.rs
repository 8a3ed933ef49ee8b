//! The whole daemon over HTTP, with a scripted engine.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use cortex_core::{HarnessError, ModelSpec, ModelStatus, UnloadRequest};
use neuron::config::HubConfig;
use neuron::pulse::Pulse;
use neuron::{Daemon, NeuronConfig, RunningDaemon};
use neuron_api::{Client, ClientTimeouts};
use serde_json::json;
use tempfile::TempDir;

use crate::scripted::{OPEN, Scripted};

struct Scene {
    daemon: RunningDaemon,
    client: Client,
    engine: Arc<Scripted>,
    /// Where the models are.
    folder: TempDir,
    config: NeuronConfig,
}

/// A daemon that preloads `preload`; its models are `a` and `b`.
async fn scene(engine: Arc<Scripted>, preload: &[&str], drain_s_max: u64) -> Scene {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let source = folder.path().to_str().map(str::to_owned);
    let config = NeuronConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        models: ["a", "b"].map(|id| ModelSpec { source: source.clone(), ..ModelSpec::new(id) }).into(),
        preload: preload.iter().map(|id| (*id).into()).collect(),
        drain_s_max,
        hub: HubConfig { offline: true, ..HubConfig::default() },
        ..NeuronConfig::default()
    };
    let daemon = Daemon::start_with(config.clone(), engine.clone()).await.expect("what the test wrote");
    let client = Client::new(&format!("http://{}", daemon.addr), ClientTimeouts::default());
    Scene { daemon, client, engine, folder, config }
}

fn hello(stream: bool) -> serde_json::Value {
    json!({ "model": "a", "stream": stream, "messages": [{ "role": "user", "content": "hello" }] })
}

#[tokio::test]
async fn a_node_with_a_token_answers_only_who_shows_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let hub = HubConfig { offline: true, ..HubConfig::default() };
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = NeuronConfig { listen, hub, token_file: Some(file.clone()), ..NeuronConfig::default() };
    for (text, complaint) in [(None, "cannot be read"), (Some(" \n"), "is empty")] {
        text.into_iter().for_each(|text| std::fs::write(&file, text).unwrap());
        let refused = Daemon::start_with(config.clone(), Scripted::new()).await.err().expect("no node without its token").to_string();
        assert!(refused.contains("token_file") && refused.contains(complaint), "{refused}");
    }
    std::fs::write(&file, "secret\n").unwrap();
    let credential = folder.path().join("node-token");
    std::fs::write(&credential, "handed over").unwrap();
    for (credential, token) in [(None, "secret"), (Some(credential), "handed over")] {
        let daemon = Daemon::start_with(NeuronConfig { credential, ..config.clone() }, Scripted::new()).await.unwrap();
        let client = Client::new(&format!("http://{}", daemon.addr), ClientTimeouts::default());
        assert!(client.health().await.is_ok(), "anybody may ask whether it lives");
        for (key, open) in [(None, false), (Some("wrong"), false), (Some(token), true)] {
            let client = key.map_or_else(|| client.clone(), |key| client.clone().with_bearer(key));
            assert_eq!((client.models().await.is_ok(), client.load(&ModelSpec::new("a")).await.is_err()), (open, true), "{key:?}");
        }
        daemon.shutdown().await;
    }
}

#[tokio::test]
async fn models_are_loaded_asked_and_unloaded_over_http() {
    let scene = scene(Scripted::new(), &[], 5).await;
    assert_eq!(scene.client.discovery().await.unwrap().harnesses, ["candle"]);
    assert!(scene.client.health().await.unwrap().ready);
    assert!(scene.client.load(&ModelSpec::new("a")).await.unwrap().is_loaded());
    let answer: serde_json::Value = scene.client.post("/v1/chat/completions", &hello(false)).await.unwrap();
    assert_eq!(answer["choices"][0]["message"]["content"], "[]");
    scene.client.unload(&UnloadRequest { model_id: "a".into(), generation: None }).await.unwrap();
    assert!(scene.client.models().await.unwrap().iter().all(|model| !model.is_loaded()));
    scene.daemon.shutdown().await;
}

#[tokio::test]
async fn preloads_come_in_order_and_a_failed_one_stops_nobody() {
    let engine = Scripted::new();
    engine.fail_with.lock().unwrap().push("no memory");
    let scene = scene(engine, &["b", "a"], 5).await;
    let ended = scene.daemon.preloaded().await;
    let ids: Vec<_> = ended.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["b", "a"]);
    assert_eq!(ended[0].1, Err(HarnessError::CannotLoad { model: "b".into(), reason: "no memory".into() }));
    assert!(ended[1].1.as_ref().is_ok_and(cortex_core::ModelReport::is_loaded));
    assert_eq!(loads(&scene), ["b", "a"]);
    // A gateway and its operator see which one failed, and why.
    let told = scene.client.models().await.unwrap();
    let status = |id: &str| told.iter().find(|model| model.id.as_str() == id).map(|model| &model.status);
    assert!(matches!(status("b"), Some(ModelStatus::Failed { reason }) if reason.contains("no memory")), "{told:?}");
    assert_eq!(status("a"), Some(&ModelStatus::Loaded));
    scene.daemon.shutdown().await;
}

#[tokio::test]
async fn figures_are_told_to_prometheus() {
    let scene = scene(Scripted::new(), &["a"], 5).await;
    scene.daemon.preloaded().await;
    let text = get_text(&scene, "/metrics").await;
    let expected = [
        "neuron_ready 1",
        "neuron_model_loaded{model=\"a\"} 1",
        "neuron_model_loaded{model=\"b\"} 0",
        "neuron_model_memory_bytes{model=\"a\"} 1048576",
        "neuron_sequences_running{model=\"a\"} 1",
        "neuron_sequences_waiting{model=\"a\"} 2",
        "neuron_kv_blocks_used{model=\"a\"} 3",
        "neuron_kv_blocks_total{model=\"a\"} 4",
        "neuron_generated_tokens_total{model=\"a\"} 5",
        "neuron_prompt_tokens_total{model=\"a\"} 6",
        "neuron_cached_tokens_total{model=\"a\"} 7",
        "neuron_device_poisoned{device=\"cpu-0\"} 0",
        "neuron_device_memory_free_bytes{device=\"cpu-0\"} ",
        "# TYPE neuron_generated_tokens_total counter",
    ];
    for line in expected {
        assert!(text.contains(line), "no `{line}` in\n{text}");
    }
    scene.daemon.shutdown().await;
}

async fn get_text(scene: &Scene, path: &str) -> String {
    reqwest::get(format!("http://{}{path}", scene.daemon.addr))
        .await
        .expect("what the test wrote")
        .text()
        .await
        .expect("what the test wrote")
}

#[tokio::test]
async fn a_shutdown_lets_answers_end_and_frees_everything() {
    let scene = scene(Scripted::with_gates(OPEN, OPEN, 0), &["a", "b"], 600).await;
    scene.daemon.preloaded().await;
    let mut chunks = scene.client.chat(&hello(true)).await.unwrap();
    assert!(chunks.next_chunk().await.unwrap().is_ok());
    let addr = scene.daemon.addr;
    let shutdown = tokio::spawn(scene.daemon.shutdown());
    while tokio::net::TcpStream::connect(addr).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(!shutdown.is_finished());
    scene.engine.answer_gate.add_permits(1);
    while let Some(chunk) = chunks.next_chunk().await {
        chunk.unwrap();
    }
    drop(chunks);
    shutdown.await.unwrap();
    assert_eq!(scene.engine.unloads.load(SeqCst), 2);
}

#[tokio::test]
async fn a_shutdown_cuts_what_does_not_end_in_time() {
    let scene = scene(Scripted::with_gates(OPEN, OPEN, 0), &["a"], 0).await;
    scene.daemon.preloaded().await;
    let mut chunks = scene.client.chat(&hello(true)).await.unwrap();
    assert!(chunks.next_chunk().await.unwrap().is_ok());
    scene.daemon.shutdown().await;
    assert_eq!(scene.engine.unloads.load(SeqCst), 1);
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = NeuronConfig { listen: taken.local_addr().unwrap(), ..NeuronConfig::default() };
    let Err(error) = Daemon::start_with(config, Scripted::new()).await else { panic!("it listens twice") };
    assert!(format!("{error:#}").contains(&taken.local_addr().unwrap().to_string()), "{error:#}");
}

/// The ids that were loaded, in the order of their loads.
fn loads(scene: &Scene) -> Vec<String> {
    scene.engine.loads.lock().expect("no holder panics").iter().map(|(spec, _)| spec.model_id.to_string()).collect()
}

#[tokio::test]
async fn a_reload_changes_only_what_differs_and_leaves_answers_alone() {
    let mut scene = scene(Scripted::with_gates(OPEN, OPEN, 0), &["a"], 600).await;
    scene.daemon.preloaded().await;
    let mut chunks = scene.client.chat(&hello(true)).await.unwrap();
    assert!(chunks.next_chunk().await.unwrap().is_ok());

    let source = scene.folder.path().to_str().map(str::to_owned);
    let model = |id: &str| ModelSpec { source: source.clone(), ..ModelSpec::new(id) };
    let declared = |models: &[ModelSpec]| NeuronConfig {
        models: models.into(),
        preload: models.iter().map(|model| model.model_id.clone()).collect(),
        ..scene.config.clone()
    };
    let steps = [
        (declared(&[model("a"), model("c"), model("b")]), vec!["a", "c", "b"], 0),
        (declared(&[model("a"), ModelSpec { context: Some(8), ..model("b") }]), vec!["a", "c", "b", "b"], 2),
        (declared(&[model("a"), ModelSpec { context: Some(8), ..model("b") }]), vec!["a", "c", "b", "b"], 2),
        (NeuronConfig { drain_s_max: 1, ..declared(&[model("a")]) }, vec!["a", "c", "b", "b"], 3),
    ];
    for (config, loaded, unloads) in steps {
        let mut preloads = scene.daemon.preloads();
        preloads.mark_unchanged();
        let waiting = scene.daemon.reload(config.clone());
        preloads.changed().await.unwrap();
        assert_eq!(waiting, if config.drain_s_max == 1 { vec!["drain_s_max"] } else { vec![] });
        assert_eq!(loads(&scene), loaded);
        assert_eq!(scene.engine.unloads.load(SeqCst), unloads);
    }
    scene.engine.answer_gate.add_permits(1);
    while let Some(chunk) = chunks.next_chunk().await {
        chunk.unwrap();
    }
    drop(chunks);
    let known: Vec<_> = scene.client.models().await.unwrap().into_iter().map(|model| model.id.to_string()).collect();
    assert_eq!(known, ["a"]);
    scene.daemon.shutdown().await;
}

#[tokio::test]
async fn a_reload_breaks_off_a_load_that_nobody_wants_any_more() {
    let mut scene = scene(Scripted::with_gates(0, OPEN, OPEN), &["a"], 5).await;
    while scene.engine.load_count() == 0 {
        tokio::task::yield_now().await;
    }
    let mut preloads = scene.daemon.preloads();
    let source = scene.folder.path().to_str().map(str::to_owned);
    let b = ModelSpec { source, ..ModelSpec::new("b") };
    scene.daemon.reload(NeuronConfig { models: vec![b], preload: vec!["b".into()], ..scene.config.clone() });
    scene.engine.load_gate.add_permits(2);
    let ended = preloads.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert_eq!(ended.len(), 1);
    assert!(ended[0].0.as_str() == "b" && ended[0].1.is_ok(), "{ended:?}");
    let loaded: Vec<_> = scene.client.models().await.unwrap().into_iter().filter(cortex_core::ModelReport::is_loaded).collect();
    assert_eq!(loaded.iter().map(|model| model.id.as_str()).collect::<Vec<_>>(), ["b"]);
    scene.daemon.shutdown().await;
}

#[tokio::test]
async fn a_node_that_does_not_answer_has_no_pulse() {
    let limit = std::time::Duration::from_millis(300);
    let scene = scene(Scripted::new(), &[], 5).await;
    let patient = std::time::Duration::from_secs(60);
    assert_eq!(Pulse::new(scene.daemon.addr, false, patient).beat().await, Ok(()));
    // Connected by the kernel, and answered by nobody.
    let deaf = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let error = Pulse::new(deaf.local_addr().unwrap(), false, limit).beat().await.unwrap_err();
    assert!(error.contains("no answer within 100 ms") || error.contains("cannot be reached"), "{error}");
    scene.daemon.shutdown().await;
}
