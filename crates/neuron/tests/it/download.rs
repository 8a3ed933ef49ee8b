//! Downloads from a hub that the test runs itself.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use neuron::config::{HubConfig, Secret};
use neuron::download::{DownloadError, Downloader, Retry};
use tempfile::TempDir;

use crate::hub::{COMMIT, Fault, Hub, sha256};

/// A cache of its own and a downloader without waits.
struct Scene {
    hub: Hub,
    cache: TempDir,
}

impl Scene {
    async fn new(weights: &[u8]) -> Self {
        Self { hub: Hub::with_model(weights).await, cache: tempfile::tempdir().expect("a scratch folder") }
    }

    fn config(&self) -> HubConfig {
        HubConfig { endpoint: self.hub.endpoint.clone(), cache_dir: Some(self.cache.path().into()), ..HubConfig::default() }
    }

    async fn fetch_with(&self, config: &HubConfig, revision: &str) -> Result<PathBuf, DownloadError> {
        let retry = Retry { tries_max: 3, first_wait: Duration::ZERO, wait_max: Duration::ZERO };
        Downloader::with_retry(config, retry).expect("what the test wrote").snapshot("org/model", revision, Arc::new(|_| ())).await
    }

    async fn fetch(&self) -> Result<PathBuf, DownloadError> {
        self.fetch_with(&self.config(), "main").await
    }

    fn repo(&self) -> PathBuf {
        self.cache.path().join("models--org--model")
    }

    fn incomplete(&self, contents: &[u8]) -> PathBuf {
        self.repo().join("blobs").join(format!("{}.incomplete", sha256(contents)))
    }
}

fn weights() -> Vec<u8> {
    (0..200_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn read(folder: &Path, name: &str) -> Vec<u8> {
    std::fs::read(folder.join(name)).expect("what the test wrote")
}

#[tokio::test]
async fn a_model_lands_in_the_layout_of_pythons_cache() {
    let scene = Scene::new(&weights()).await;
    let folder = scene.fetch().await.unwrap();
    assert_eq!(folder, scene.repo().join("snapshots").join(COMMIT));
    assert_eq!(read(&folder, "model.safetensors"), weights());
    assert_eq!(std::fs::read_to_string(scene.repo().join("refs/main")).unwrap(), COMMIT);
    let link = std::fs::read_link(folder.join("model.safetensors")).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(sha256(&weights())));
    assert!(!folder.join("README.md").exists());
}

#[tokio::test]
async fn files_in_folders_are_linked_as_deep_as_they_are() {
    let scene = Scene::new(&weights()).await;
    scene.hub.put("1_Pooling/config.json", b"{\"pool\": 1}", false);
    let folder = scene.fetch().await.unwrap();
    assert_eq!(read(&folder, "1_Pooling/config.json"), b"{\"pool\": 1}");
    assert!(std::fs::read_link(folder.join("1_Pooling/config.json")).unwrap().starts_with("../../../blobs"));
}

#[tokio::test]
async fn shards_are_those_of_the_index() {
    let scene = Scene { hub: Hub::start().await, cache: tempfile::tempdir().unwrap() };
    scene.hub.put("config.json", b"{}", false);
    scene.hub.put("model.safetensors.index.json", br#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#, false);
    for name in ["m-1.safetensors", "m-2.safetensors", "m-3.safetensors"] {
        scene.hub.put(name, name.as_bytes(), true);
    }
    let folder = scene.fetch().await.unwrap();
    assert_eq!(read(&folder, "m-2.safetensors"), b"m-2.safetensors");
    assert!(!folder.join("m-3.safetensors").exists());
}

#[tokio::test]
async fn a_shard_that_the_repository_lacks_is_named() {
    let scene = Scene { hub: Hub::start().await, cache: tempfile::tempdir().unwrap() };
    scene.hub.put("config.json", b"{}", false);
    scene.hub.put("model.safetensors.index.json", br#"{"weight_map": {"a": "m-1.safetensors"}}"#, false);
    let error = scene.fetch().await.unwrap_err();
    assert!(matches!(&error, DownloadError::NotFound { what } if what.contains("m-1.safetensors")), "{error}");
}

#[tokio::test]
async fn the_second_fetch_moves_no_bytes() {
    let scene = Scene::new(&weights()).await;
    scene.fetch().await.unwrap();
    scene.fetch().await.unwrap();
    assert_eq!(scene.hub.asked_for("model.safetensors").len(), 1);
}

#[tokio::test]
async fn a_commit_in_the_cache_needs_no_question() {
    let scene = Scene::new(&weights()).await;
    scene.fetch().await.unwrap();
    let before = scene.hub.asked().len();
    let folder = scene.fetch_with(&scene.config(), COMMIT).await.unwrap();
    assert_eq!(read(&folder, "model.safetensors"), weights());
    assert_eq!(scene.hub.asked().len(), before);
}

#[tokio::test]
async fn a_cut_connection_goes_on_where_it_broke() {
    let scene = Scene::new(&weights()).await;
    // More cuts than tries: each brings something, so patience starts anew.
    scene.hub.fail("model.safetensors", vec![Fault::CutAfter(30_000); 5]);
    let folder = scene.fetch().await.unwrap();
    assert_eq!(read(&folder, "model.safetensors"), weights());
    let ranges: Vec<_> = scene.hub.asked_for("model.safetensors").into_iter().map(|asked| asked.range).collect();
    assert_eq!(ranges.len(), 6);
    assert_eq!(ranges[0], None);
    assert!(ranges[1..].iter().all(Option::is_some), "{ranges:?}");
}

#[tokio::test]
async fn connections_that_bring_nothing_are_given_up() {
    let scene = Scene::new(&weights()).await;
    scene.hub.fail("model.safetensors", vec![Fault::CutAfter(0); 9]);
    let error = scene.fetch().await.unwrap_err();
    assert!(matches!(error, DownloadError::Unreachable { tries: 3, .. }), "{error}");
}

#[tokio::test]
async fn what_an_earlier_run_left_is_continued() {
    for (fault, expected_ranges) in [(None, vec![Some("bytes=50000-")]), (Some(Fault::NoRange), vec![Some("bytes=50000-")])] {
        let scene = Scene::new(&weights()).await;
        let place = scene.incomplete(&weights());
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::write(&place, &weights()[..50_000]).unwrap();
        scene.hub.fail("model.safetensors", fault);
        let folder = scene.fetch().await.unwrap();
        assert_eq!(read(&folder, "model.safetensors"), weights());
        let asked = scene.hub.asked_for("model.safetensors");
        assert_eq!(asked.iter().map(|asked| asked.range.as_deref()).collect::<Vec<_>>(), expected_ranges);
        assert!(!place.exists());
    }
}

#[tokio::test]
async fn a_damaged_remainder_is_fetched_anew() {
    let cases = [vec![0; 50_000], weights().iter().map(|byte| byte ^ 1).collect(), vec![7; 300_000]];
    for left in cases {
        let scene = Scene::new(&weights()).await;
        let place = scene.incomplete(&weights());
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::write(&place, &left).unwrap();
        let folder = scene.fetch().await.unwrap();
        assert_eq!(read(&folder, "model.safetensors"), weights(), "{} bytes were left", left.len());
    }
}

#[tokio::test]
async fn wrong_bytes_are_refused_and_thrown_away() {
    let flipped: Vec<u8> = weights().iter().map(|byte| byte ^ 1).collect();
    let longer = [weights(), vec![0]].concat();
    type Expected = fn(&DownloadError) -> bool;
    let cases: [(Vec<u8>, Expected); 2] = [
        (flipped, |error| matches!(error, DownloadError::WrongHash { .. })),
        (longer, |error| matches!(error, DownloadError::WrongSize { .. })),
    ];
    for (bytes, expected) in cases {
        let scene = Scene::new(&weights()).await;
        scene.hub.fail("model.safetensors", [Fault::Bytes(bytes)]);
        let error = scene.fetch().await.unwrap_err();
        assert!(expected(&error), "{error}");
        assert!(error.to_string().contains("model.safetensors"), "{error}");
        let folder = scene.fetch().await.unwrap();
        assert_eq!(read(&folder, "model.safetensors"), weights());
    }
}

#[tokio::test]
async fn a_busy_hub_is_asked_again_and_then_given_up() {
    let busy = [Fault::RetryAfter { status: 429, seconds: 3600 }, Fault::Status(503)];
    for name in ["revision/main", "model.safetensors"] {
        let scene = Scene::new(&weights()).await;
        scene.hub.fail(name, busy.clone());
        scene.fetch().await.unwrap();

        let scene = Scene::new(&weights()).await;
        scene.hub.fail(name, vec![Fault::Status(429); 9]);
        let error = scene.fetch().await.unwrap_err();
        assert!(matches!(error, DownloadError::Busy { status: 429, tries: 3, .. }), "{error}");
    }
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let cases: &[(&str, u16, Option<&str>, &[&str])] = &[
        ("revision/main", 401, None, &["401", "`org/model`", "set HF_TOKEN, or hfTokenFile in services.neuron"]),
        ("model.safetensors", 403, None, &["403", "model.safetensors", "set HF_TOKEN, or hfTokenFile in services.neuron"]),
        ("revision/main", 401, Some("hf_x"), &["401", "the token is not valid"]),
        ("revision/main", 403, Some("hf_x"), &["403", "accept the model's terms"]),
        ("revision/main", 404, None, &["404", "`org/model` at `main`", "check the name"]),
        ("revision/main", 418, None, &["418", "HF_ENDPOINT"]),
    ];
    for (name, status, token, expected) in cases {
        let scene = Scene::new(&weights()).await;
        scene.hub.fail(name, [Fault::Status(*status)]);
        let config = HubConfig { token: token.map(Secret::new), ..scene.config() };
        let error = scene.fetch_with(&config, "main").await.unwrap_err().to_string();
        for part in *expected {
            assert!(error.contains(part), "{error}\n does not say {part}");
        }
    }
}

#[tokio::test]
async fn the_token_goes_to_the_hub_and_nowhere_else() {
    let scene = Scene::new(&weights()).await;
    scene.hub.need_token("hf_secret");
    let file = scene.cache.path().join("token");
    std::fs::write(&file, "hf_secret\n").unwrap();
    let from_file = HubConfig { token_file: Some(file), ..scene.config() };
    scene.fetch_with(&from_file, "main").await.unwrap();
    let (hub, cdn): (Vec<_>, Vec<_>) = scene.hub.asked().into_iter().partition(|asked| asked.host == "hub");
    assert!(hub.iter().all(|asked| asked.token.as_deref() == Some("Bearer hf_secret")), "{hub:?}");
    assert!(!cdn.is_empty() && cdn.iter().all(|asked| asked.token.is_none()), "{cdn:?}");
}

#[tokio::test]
async fn offline_serves_what_is_whole_and_asks_nobody() {
    let scene = Scene::new(&weights()).await;
    let offline = HubConfig { offline: true, ..scene.config() };
    for revision in ["main", COMMIT] {
        let error = scene.fetch_with(&offline, revision).await.unwrap_err();
        assert!(matches!(error, DownloadError::Offline { .. }) && error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    }
    assert!(scene.hub.asked().is_empty());

    let folder = scene.fetch().await.unwrap();
    let before = scene.hub.asked().len();
    assert_eq!(scene.fetch_with(&offline, "main").await.unwrap(), folder);
    assert_eq!(scene.fetch_with(&offline, COMMIT).await.unwrap(), folder);
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    assert!(scene.fetch_with(&offline, "main").await.is_err());
    assert_eq!(scene.hub.asked().len(), before);
}

#[tokio::test]
async fn a_hub_that_is_down_does_not_take_fetched_models_along() {
    let scene = Scene::new(&weights()).await;
    let folder = scene.fetch().await.unwrap();
    scene.hub.fail("revision/main", vec![Fault::Status(500); 9]);
    assert_eq!(scene.fetch().await.unwrap(), folder);
}

#[tokio::test]
async fn a_hub_that_does_not_list_hashes_is_asked_file_by_file() {
    let scene = Scene::new(&weights()).await;
    scene.hub.tell_no_blobs();
    let folder = scene.fetch().await.unwrap();
    assert_eq!(read(&folder, "model.safetensors"), weights());
    assert!(scene.repo().join("blobs").join(sha256(&weights())).is_file());

    let scene = Scene::new(&weights()).await;
    scene.hub.tell_no_blobs();
    scene.hub.fail("/bytes/model.safetensors", [Fault::Bytes(vec![1; weights().len()])]);
    let error = scene.fetch().await.unwrap_err();
    assert!(matches!(error, DownloadError::WrongHash { .. }), "{error}");
}

#[tokio::test]
async fn a_repository_without_safetensors_says_what_it_has() {
    let scene = Scene { hub: Hub::start().await, cache: tempfile::tempdir().unwrap() };
    scene.hub.put("config.json", b"{}", false);
    scene.hub.put("pytorch_model.bin", b"x", true);
    let error = scene.fetch().await.unwrap_err().to_string();
    assert!(error.contains("bin files only") && error.contains("org/model"), "{error}");
}

#[tokio::test]
async fn progress_rises_to_the_whole() {
    let scene = Scene::new(&weights()).await;
    scene.hub.fail("model.safetensors", [Fault::CutAfter(100_000)]);
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = told.clone();
    let downloader = Downloader::new(&HubConfig { tries_max: 1, ..scene.config() }).unwrap();
    // The first run breaks off; the second starts from what is there.
    assert!(downloader.snapshot("org/model", "main", Arc::new(|_| ())).await.is_err());
    downloader.snapshot("org/model", "main", Arc::new(move |percent| tell.lock().unwrap().push(percent))).await.unwrap();
    let told = told.lock().unwrap();
    assert!(told.is_sorted() && told.first() >= Some(&1) && told.last() == Some(&100), "{told:?}");
}

#[tokio::test]
async fn two_fetches_at_once_share_the_bytes() {
    let scene = Scene::new(&weights()).await;
    let (a, b) = tokio::join!(scene.fetch(), scene.fetch());
    assert_eq!(a.unwrap(), b.unwrap());
    assert_eq!(scene.hub.asked_for("model.safetensors").len(), 1);
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_named() {
    let scene = Scene::new(&weights()).await;
    let blocked = scene.cache.path().join("file");
    std::fs::write(&blocked, "").unwrap();
    let config = HubConfig { cache_dir: Some(blocked.clone()), ..scene.config() };
    let error = scene.fetch_with(&config, "main").await.unwrap_err();
    assert!(matches!(&error, DownloadError::Disk { path, .. } if path.starts_with(&blocked)), "{error}");
}
