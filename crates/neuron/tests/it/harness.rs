//! What becomes of models while callers come and go.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use cortex_core::{Capability, Harness, HarnessError, ModelId, ModelReport, ModelSpec, ModelStatus, Prompt, UnloadRequest};
use futures::FutureExt;
use neuron::config::HubConfig;
use neuron::{CandleHarness, NeuronConfig};
use tempfile::TempDir;

use crate::hub::{Fault, Hub};
use crate::scripted::{OPEN, Scripted};

/// A node with one configured model, `chat`, whose folder is there.
struct Scene {
    node: CandleHarness,
    engine: Arc<Scripted>,
    folder: TempDir,
}

impl Scene {
    fn new(engine: Arc<Scripted>) -> Self {
        Self::with_hub(engine, HubConfig { offline: true, ..HubConfig::default() })
    }

    fn with_hub(engine: Arc<Scripted>, hub: HubConfig) -> Self {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let source = folder.path().to_str().expect("UTF-8").to_owned();
        let hub = HubConfig { cache_dir: Some(folder.path().into()), ..hub };
        let model = ModelSpec { source: Some(source), context: Some(32), ..ModelSpec::new("chat") };
        let config = NeuronConfig { models: vec![model], hub, ..NeuronConfig::default() };
        Self { node: CandleHarness::new(&config, engine.clone()).expect("what the test wrote"), engine, folder }
    }

    async fn load(&self, id: &str) -> Result<ModelReport, HarnessError> {
        self.node.load(ModelSpec::new(id)).await
    }

    async fn unload(&self, id: &str) -> Result<(), HarnessError> {
        self.node.unload(UnloadRequest { model_id: id.into(), generation: None }).await
    }

    fn status(&self, id: &str) -> Option<ModelStatus> {
        self.node.models().into_iter().find(|model| model.id.as_str() == id).map(|model| model.status)
    }
}

/// Polls until nothing more happens without the test's doing.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Starts `work` and lets it go as far as it can.
async fn start<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
    let handle = tokio::spawn(work);
    settle().await;
    handle
}

async fn start_load(scene: &Scene, spec: ModelSpec) -> tokio::task::JoinHandle<Result<ModelReport, HarnessError>> {
    let node = scene.node.clone();
    start(async move { node.load(spec).await }).await
}

async fn start_unload(scene: &Scene) -> tokio::task::JoinHandle<Result<(), HarnessError>> {
    let node = scene.node.clone();
    start(async move { node.unload(UnloadRequest { model_id: "chat".into(), generation: None }).await }).await
}

#[tokio::test]
async fn a_configured_model_is_available_then_loaded_then_available() {
    let scene = Scene::new(Scripted::new());
    assert_eq!(scene.status("chat"), Some(ModelStatus::Available));
    assert_eq!(scene.node.models()[0].capabilities, [Capability::Chat]);
    let report = scene.load("chat").await.unwrap();
    assert!(report.is_loaded());
    assert_eq!((report.architecture.as_deref(), report.context, report.memory_used_bytes), (Some("scripted"), Some(64), 1 << 20));
    assert!(report.load_s.is_some());
    let (spec, folder) = scene.engine.loads.lock().unwrap()[0].clone();
    assert_eq!((spec.context, folder.as_path()), (Some(32), scene.folder.path()));
    assert_eq!(scene.node.health().models[0].kv_blocks_total, 4);

    scene.unload("chat").await.unwrap();
    assert_eq!(scene.status("chat"), Some(ModelStatus::Available));
    let report = scene.node.models().remove(0);
    assert_eq!((report.memory_used_bytes, report.devices.len(), report.context), (0, 0, None));
    assert!(scene.node.health().models.is_empty());
}

#[tokio::test]
async fn many_callers_share_one_load_and_the_first_may_leave() {
    let scene = Scene::new(Scripted::with_gates(0, OPEN, OPEN));
    let first = start_load(&scene, ModelSpec::new("chat")).await;
    let mut others = Vec::new();
    for _ in 0..8 {
        others.push(start_load(&scene, ModelSpec::new("chat")).await);
    }
    assert_eq!(scene.status("chat"), Some(ModelStatus::Loading { percent: 0 }));
    first.abort();
    scene.engine.load_gate.add_permits(1);
    for other in others {
        assert!(other.await.unwrap().unwrap().is_loaded());
    }
    assert_eq!(scene.engine.load_count(), 1);
}

#[tokio::test]
async fn a_load_goes_on_when_everybody_left() {
    let scene = Scene::new(Scripted::with_gates(0, OPEN, OPEN));
    start_load(&scene, ModelSpec::new("chat")).await.abort();
    scene.engine.load_gate.add_permits(1);
    assert!(scene.load("chat").await.unwrap().is_loaded());
    assert_eq!(scene.engine.load_count(), 1);
}

#[tokio::test]
async fn a_failed_load_says_why_and_the_next_one_tries_again() {
    for (failure, expected) in [("the weights need 9 GiB", "the weights need 9 GiB"), ("panic", "broke off")] {
        let scene = Scene::new(Scripted::new());
        scene.engine.fail_with.lock().unwrap().push(failure);
        let error = scene.load("chat").await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(matches!(scene.status("chat"), Some(ModelStatus::Failed { reason }) if reason.contains(expected)));
        assert_eq!(not_loaded(&scene).await, HarnessError::ModelNotLoaded("chat".into()));
        assert!(scene.load("chat").await.unwrap().is_loaded());
    }
}

async fn not_loaded(scene: &Scene) -> HarnessError {
    scene.node.tokenize(&"chat".into(), Prompt::Text("x".into())).await.expect_err("a refusal")
}

#[tokio::test]
async fn unknown_models_are_told_from_unloaded_ones() {
    let scene = Scene::new(Scripted::new());
    let ask = |id: &str| {
        let (node, id) = (scene.node.clone(), ModelId::from(id));
        async move { node.detokenize(&id, vec![1]).await }
    };
    assert_eq!(ask("other").await, Err(HarnessError::ModelNotFound("other".into())));
    assert_eq!(ask("chat").await, Err(HarnessError::ModelNotLoaded("chat".into())));
    assert_eq!(scene.unload("other").await, Err(HarnessError::ModelNotFound("other".into())));
    assert_eq!(scene.unload("chat").await, Ok(()));
    scene.load("chat").await.unwrap();
    assert_eq!(ask("chat").await, Ok("[1]".to_owned()));
}

#[tokio::test]
async fn stale_generations_are_refused() {
    let scene = Scene::new(Scripted::new());
    let load = |generation| scene.node.load(ModelSpec { generation, ..ModelSpec::new("chat") });
    let unload = |generation| scene.node.unload(UnloadRequest { model_id: "chat".into(), generation });
    assert_eq!(load(Some(5)).await.unwrap().generation, 5);
    assert_eq!(load(Some(4)).await, Err(HarnessError::StaleGeneration { given: 4, current: 5 }));
    assert_eq!(unload(Some(4)).await, Err(HarnessError::StaleGeneration { given: 4, current: 5 }));
    assert_eq!(
        unload(Some(5)).await,
        Err(HarnessError::StaleGeneration { given: 5, current: 5 }),
        "another action, decided at the same time"
    );
    assert!(load(Some(5)).await.is_ok(), "the same once more");
    assert!(load(None).await.is_ok());
    assert_eq!(unload(Some(7)).await, Ok(()));
    assert_eq!(load(Some(6)).await, Err(HarnessError::StaleGeneration { given: 6, current: 7 }));
    assert_eq!(scene.engine.load_count(), 1);
}

#[tokio::test]
async fn other_options_than_those_in_memory_need_an_unload() {
    let scene = Scene::new(Scripted::new());
    scene.load("chat").await.unwrap();
    let same = ModelSpec { context: Some(32), ..ModelSpec::new("chat") };
    assert!(scene.node.load(same).await.is_ok());
    let others = [
        (ModelSpec { context: Some(16), ..ModelSpec::new("chat") }, "context"),
        (ModelSpec { source: Some("/elsewhere".into()), ..ModelSpec::new("chat") }, "source"),
        (ModelSpec { dtype: Some("f32".into()), ..ModelSpec::new("chat") }, "dtype"),
    ];
    for (spec, field) in others {
        let error = scene.node.load(spec).await.unwrap_err();
        assert!(matches!(&error, HarnessError::InvalidRequest { param, .. } if param.as_deref() == Some(field)), "{error}");
    }
    scene.unload("chat").await.unwrap();
    scene.node.load(ModelSpec { context: Some(16), ..ModelSpec::new("chat") }).await.unwrap();
    assert_eq!(scene.engine.loads.lock().unwrap()[1].0.context, Some(16));
}

#[tokio::test]
async fn an_unload_answers_when_the_memory_is_back_and_survives_its_caller() {
    let scene = Scene::new(Scripted::with_gates(OPEN, 0, OPEN));
    scene.load("chat").await.unwrap();
    let first = start_unload(&scene).await;
    assert_eq!(scene.status("chat"), Some(ModelStatus::Unloading));
    assert_eq!(not_loaded(&scene).await, HarnessError::ShuttingDown);
    first.abort();
    let second = start_unload(&scene).await;
    let reload = start_load(&scene, ModelSpec::new("chat")).await;
    assert!(!second.is_finished() && !reload.is_finished());
    scene.engine.unload_gate.add_permits(1);
    assert_eq!(second.await.unwrap(), Ok(()));
    assert!(reload.await.unwrap().unwrap().is_loaded());
    assert_eq!((scene.engine.unloads.load(SeqCst), scene.engine.load_count()), (1, 2));
}

#[tokio::test]
async fn an_unload_during_a_load_leaves_nothing_behind() {
    let scene = Scene::new(Scripted::with_gates(0, OPEN, OPEN));
    let load = start_load(&scene, ModelSpec::new("chat")).await;
    let unload = start_unload(&scene).await;
    scene.engine.load_gate.add_permits(1);
    // The weights were being read already: that load ends, and what it read is freed.
    assert!(load.await.unwrap().is_ok());
    assert_eq!(unload.await.unwrap(), Ok(()));
    assert_eq!(scene.status("chat"), Some(ModelStatus::Available));
    assert_eq!(scene.engine.unloads.load(SeqCst), 1);
}

#[tokio::test]
async fn an_unload_stops_a_download() {
    let hub = Hub::with_model(&[7; 1000]).await;
    hub.fail("model.safetensors", vec![Fault::RetryAfter { status: 429, seconds: 3600 }; 9]);
    let scene = Scene::with_hub(Scripted::new(), HubConfig { endpoint: hub.endpoint.clone(), ..HubConfig::default() });
    let load = start_load(&scene, ModelSpec::new("org/model")).await;
    while !matches!(scene.status("org/model"), Some(ModelStatus::Loading { percent: 1.. })) {
        tokio::task::yield_now().await;
    }
    scene.unload("org/model").await.unwrap();
    assert_eq!(load.await.unwrap(), Err(HarnessError::ShuttingDown));
    assert_eq!(scene.status("org/model"), Some(ModelStatus::Available));
    assert_eq!(scene.engine.load_count(), 0);
}

#[tokio::test]
async fn a_hub_model_is_fetched_and_then_known() {
    let hub = Hub::with_model(&[7; 1000]).await;
    let scene = Scene::with_hub(Scripted::new(), HubConfig { endpoint: hub.endpoint.clone(), ..HubConfig::default() });
    assert_eq!(scene.status("org/model"), None);
    scene.load("org/model").await.unwrap();
    assert!(scene.engine.loads.lock().unwrap()[0].1.join("model.safetensors").is_file());
    scene.unload("org/model").await.unwrap();
    assert_eq!(scene.status("org/model"), Some(ModelStatus::Available));
}

#[tokio::test]
async fn a_source_that_cannot_be_used_says_what_to_correct() {
    let scene = Scene::new(Scripted::new());
    let cases = [
        (ModelSpec { source: Some("/nowhere/x".into()), ..ModelSpec::new("a") }, "`/nowhere/x` does not exist on this node"),
        (ModelSpec::new("no id"), "neither a folder on this node nor a hub id"),
        (ModelSpec::new("org/model"), "HF_HUB_OFFLINE is set"),
    ];
    for (spec, expected) in cases {
        let error = scene.node.load(spec.clone()).await.unwrap_err();
        assert!(
            matches!(&error, HarnessError::CannotLoad { model, reason } if *model == spec.model_id && reason.contains(expected)),
            "{error}"
        );
    }
}

#[tokio::test]
async fn models_that_only_failed_are_forgotten_in_time() {
    let scene = Scene::new(Scripted::new());
    for i in 0..200 {
        assert!(scene.load(&format!("nobody/model-{i}")).await.is_err());
    }
    assert!(scene.node.models().len() <= 65, "{}", scene.node.models().len());
    assert!(scene.status("chat").is_some() && scene.status("nobody/model-199").is_some());
}

#[tokio::test]
async fn a_draining_node_refuses_what_is_new_and_gives_everything_back() {
    let scene = Scene::new(Scripted::new());
    scene.load("chat").await.unwrap();
    assert!(scene.node.health().ready);
    scene.node.begin_drain();
    assert!(!scene.node.health().ready);
    assert_eq!(scene.load("chat").await, Err(HarnessError::ShuttingDown));
    assert_eq!(not_loaded(&scene).await, HarnessError::ShuttingDown);
    scene.node.shutdown(Duration::ZERO).await;
    assert_eq!(scene.engine.unloads.load(SeqCst), 1);
    assert!(scene.node.load(ModelSpec::new("chat")).now_or_never().is_some());
}

/// Breaks the loaded models, and waits for what the node does about it.
async fn break_models(scene: &Scene) {
    scene.engine.faults.send_modify(|faults| *faults += 1);
    settle().await;
}

#[tokio::test]
async fn a_broken_model_comes_back_by_itself() {
    let scene = Scene::new(Scripted::new());
    scene.load("chat").await.unwrap();
    break_models(&scene).await;
    assert_eq!((scene.engine.unloads.load(SeqCst), scene.engine.load_count()), (1, 2));
    assert_eq!(scene.status("chat"), Some(ModelStatus::Loaded));
    let loads = scene.engine.loads.lock().unwrap().clone();
    assert_eq!(loads[0], loads[1]);
}

#[tokio::test]
async fn a_broken_model_is_loading_until_it_is_back_and_can_be_unloaded_meanwhile() {
    let scene = Scene::new(Scripted::with_gates(1, OPEN, OPEN));
    scene.load("chat").await.unwrap();
    break_models(&scene).await;
    assert_eq!(scene.status("chat"), Some(ModelStatus::Loading { percent: 0 }));
    assert_eq!(not_loaded(&scene).await, HarnessError::ModelNotLoaded("chat".into()));
    let load = start_load(&scene, ModelSpec::new("chat")).await;
    let unload = start_unload(&scene).await;
    scene.engine.load_gate.add_permits(1);
    assert!(load.await.unwrap().is_ok());
    assert_eq!(unload.await.unwrap(), Ok(()));
    assert_eq!(scene.status("chat"), Some(ModelStatus::Available));
    assert_eq!((scene.engine.unloads.load(SeqCst), scene.engine.load_count()), (2, 2));
}

#[tokio::test]
async fn a_model_that_was_unloaded_does_not_come_back() {
    let scene = Scene::new(Scripted::new());
    scene.load("chat").await.unwrap();
    scene.unload("chat").await.unwrap();
    break_models(&scene).await;
    assert_eq!((scene.status("chat"), scene.engine.load_count()), (Some(ModelStatus::Available), 1));
    scene.load("chat").await.unwrap();
    scene.node.begin_drain();
    break_models(&scene).await;
    assert_eq!(scene.engine.load_count(), 2, "a draining node loads nothing");
}

#[tokio::test]
async fn a_model_that_keeps_breaking_is_left_alone_until_somebody_asks() {
    let scene = Scene::new(Scripted::new());
    scene.load("chat").await.unwrap();
    for loads in [2, 3, 4, 4, 4] {
        break_models(&scene).await;
        assert_eq!(scene.engine.load_count(), loads);
    }
    let Some(ModelStatus::Failed { reason }) = scene.status("chat") else { panic!("{:?}", scene.status("chat")) };
    assert!(reason.contains("4 times within 10 minutes") && reason.ends_with("a step panicked"), "{reason}");
    assert_eq!(scene.engine.unloads.load(SeqCst), 4);
    assert!(scene.load("chat").await.unwrap().is_loaded());
}

#[tokio::test]
async fn the_node_describes_itself() {
    let scene = Scene::new(Scripted::new());
    let discovery = scene.node.discovery();
    assert_eq!(discovery.devices.len(), 1);
    assert!(discovery.devices[0].memory_total_bytes > 0 && discovery.boot_id.len() == 36);
    assert!(discovery.gpu_note.unwrap().ends_with("serving on the CPU"));
    let device = scene.node.health().devices.remove(0);
    assert_eq!(device.memory_used_bytes + device.memory_free_bytes, discovery.devices[0].memory_total_bytes);
}
