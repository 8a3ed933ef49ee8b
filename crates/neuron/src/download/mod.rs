//! Brings a repository of the hub into the local cache and answers the folder.
//!
//! The cache is the one that Python's hub tools use (`models--org--name/{blobs,refs,snapshots}`), so what one has fetched serves
//! the other. A branch or tag is resolved to its commit first, and every file is taken from that commit.

mod blob;
mod error;
mod files;
mod http;
mod meter;

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{FutureExt, StreamExt, TryStreamExt};
use hf_hub::{Cache, Repo, RepoType};
use indicatif::ProgressBar;
use reqwest::Method;

pub use error::DownloadError;
pub use http::Retry;
pub(crate) use http::story;
pub use meter::ProgressFn;

use crate::config::{HubConfig, Secret};
use crate::source::is_inside;
use blob::Blob;
use files::{INDEX, Listing, RemoteFile, is_whole, shards};
use http::{Ask, HubClient};
use meter::{Meter, bar};

/// A hub and the cache in front of it.
#[derive(Debug)]
pub struct Downloader {
    hub: HubClient,
    cache: Cache,
    offline: bool,
    parallel_files_max: usize,
    progress_bar: bool,
}

/// One repository at one commit, being fetched.
struct Snapshot<'a> {
    from: &'a Downloader,
    repo: &'a str,
    commit: String,
    folder: PathBuf,
}

impl Downloader {
    /// For the hub and cache that `config` names; reads the token file, if there is one.
    pub fn new(config: &HubConfig) -> Result<Self, DownloadError> {
        let retry = Retry { tries_max: config.tries_max, first_wait: Duration::from_secs(1), wait_max: Duration::from_secs(60) };
        Self::with_retry(config, retry)
    }

    /// As [`Downloader::new`], with another patience.
    pub fn with_retry(config: &HubConfig, retry: Retry) -> Result<Self, DownloadError> {
        let files = [&config.credential, &config.token_file].into_iter().flatten();
        let token = config.token.clone().or_else(|| files.filter_map(|file| token_in(file)).next());
        Ok(Self {
            hub: HubClient::new(&config.endpoint, token, retry)?,
            cache: Cache::new(config.cache_dir.clone().unwrap_or_else(|| "huggingface/hub".into())),
            offline: config.offline,
            parallel_files_max: config.parallel_files_max,
            progress_bar: config.progress_bar,
        })
    }

    /// The folder with every file that a model needs, fetched where it is not there yet. `tell` hears the percentage.
    /// Dropping the future stops; a later call goes on where this one stopped.
    pub async fn snapshot(&self, repo: &str, revision: &str, tell: ProgressFn) -> Result<PathBuf, DownloadError> {
        let cached = self.cached(repo, revision);
        // A commit never changes, so a whole copy of it needs no question.
        if let Some(folder) = cached.as_ref().filter(|_| self.offline || is_commit(revision)) {
            return Ok(folder.clone());
        }
        if self.offline {
            return Err(DownloadError::Offline { repo: repo.into(), revision: revision.into(), cache: self.cache.path().clone() });
        }
        match (self.listing(repo, revision).await, cached) {
            (Ok(listing), _) => self.fetch(repo, revision, &listing, tell).await,
            (Err(error @ (DownloadError::Unreachable { .. } | DownloadError::Busy { .. })), Some(folder)) => {
                tracing::warn!("{error}; serving the copy in {}", folder.display());
                Ok(folder)
            }
            (Err(error), _) => Err(error),
        }
    }

    async fn fetch(&self, repo: &str, revision: &str, listing: &Listing, tell: ProgressFn) -> Result<PathBuf, DownloadError> {
        let in_cache = self.cache.repo(named(repo, revision));
        let folder = in_cache.pointer_path(&listing.sha);
        let snapshot = Snapshot { from: self, repo, commit: listing.sha.clone(), folder: folder.clone() };
        snapshot.fetch(listing, tell).await?;
        if revision != listing.sha {
            in_cache.create_ref(&listing.sha).map_err(|error| DownloadError::disk(&folder, error))?;
        }
        Ok(folder)
    }

    /// A whole copy of the revision in the cache, as far as was known when it was last asked for.
    pub fn cached(&self, repo: &str, revision: &str) -> Option<PathBuf> {
        let in_cache = self.cache.repo(named(repo, revision));
        let folder = if is_commit(revision) { in_cache.pointer_path(revision) } else { in_cache.get("config.json")?.parent()?.to_owned() };
        is_whole(&folder).then_some(folder)
    }

    async fn listing(&self, repo: &str, revision: &str) -> Result<Listing, DownloadError> {
        let what = format!("`{repo}` at `{revision}`");
        let url = self.hub.url(&format!("api/models/{repo}/revision/{}?blobs=true", revision.replace('/', "%2F")))?;
        let answer = self.hub.ask(&Ask { method: Method::GET, url, what: what.clone(), from: 0 }).await?;
        let unexpected = |reason: String| DownloadError::Unexpected { what: what.clone(), reason };
        let body = answer.response.bytes().await.map_err(|error| unexpected(story(&error)))?;
        let listing: Listing = serde_json::from_slice(&body).map_err(|error| unexpected(error.to_string()))?;
        match is_commit(&listing.sha) {
            true => Ok(listing),
            false => Err(unexpected(format!("its commit is `{}`", listing.sha))),
        }
    }
}

impl Snapshot<'_> {
    /// Descriptions first, weights last: a folder with all its weights is whole.
    async fn fetch(&self, listing: &Listing, tell: ProgressFn) -> Result<(), DownloadError> {
        let weights = listing.weights(self.repo)?;
        let descriptions: Vec<&RemoteFile> = listing.descriptions().collect();
        let quiet = Meter::hidden();
        let weight_files = if weights.name == INDEX {
            self.file(weights, &quiet).await?;
            self.shards_of(listing)?
        } else {
            vec![weights]
        };
        let total = descriptions.iter().chain(&weight_files).filter_map(|file| file.bytes()).sum();
        let bar = if self.from.progress_bar { bar(self.repo, total) } else { ProgressBar::hidden() };
        let meter = Meter::new(total, tell, bar);
        self.files(&descriptions, &meter).await?;
        self.files(&weight_files, &meter).await
    }

    fn shards_of<'l>(&self, listing: &'l Listing) -> Result<Vec<&'l RemoteFile>, DownloadError> {
        let index = self.folder.join(INDEX);
        let bytes = std::fs::read(&index).map_err(|error| DownloadError::disk(&index, error))?;
        let names = shards(&bytes).map_err(|reason| DownloadError::Unexpected { what: INDEX.to_owned(), reason })?;
        let find =
            |name: &String| listing.file(name).ok_or_else(|| DownloadError::NotFound { what: format!("{name}, which {INDEX} names") });
        names.iter().map(find).collect()
    }

    async fn files(&self, files: &[&RemoteFile], meter: &Meter) -> Result<(), DownloadError> {
        let fetches: Vec<_> = files.iter().map(|file| self.file(file, meter).boxed()).collect();
        futures::stream::iter(fetches).buffer_unordered(self.from.parallel_files_max).try_collect().await
    }

    /// Fetches one file and links it into the snapshot.
    async fn file(&self, file: &RemoteFile, meter: &Meter) -> Result<(), DownloadError> {
        if !is_inside(&file.name) {
            return Err(DownloadError::Unexpected { what: file.name.clone(), reason: "a name that leads out of the folder".to_owned() });
        }
        let url = self.from.hub.url(&format!("{}/resolve/{}/{}", self.repo, self.commit, file.name))?;
        let known = self.identity(file, &url).await?;
        let repo_folder = self.folder.ancestors().nth(2).unwrap_or(&self.folder);
        let locks = self.from.cache.path().join(".locks").join(repo_folder.file_name().unwrap_or_default());
        let blob = Blob {
            url,
            name: file.name.clone(),
            size: known.size,
            sha256: known.sha256(),
            target: repo_folder.join("blobs").join(&known.etag),
            lock: locks.join(format!("{}.lock", known.etag)),
        };
        make_parents(&[&blob.target, &blob.lock, &self.folder.join(&file.name)])?;
        blob.fetch(&self.from.hub, meter).await?;
        link(&self.folder, &file.name, &known.etag)
    }

    /// From the listing, or from the file's own headers where the listing does not tell.
    async fn identity(&self, file: &RemoteFile, url: &reqwest::Url) -> Result<Identity, DownloadError> {
        if let Some(known) = file.identity() {
            return Ok(known);
        }
        let ask = Ask { method: Method::HEAD, url: url.clone(), what: file.name.clone(), from: 0 };
        let answer = self.from.hub.ask(&ask).await?;
        let size = answer.linked_size.or_else(|| answer.response.headers().get("content-length")?.to_str().ok()?.parse().ok());
        match answer.etag {
            Some(etag) if is_etag(&etag) => {
                Ok(Identity { etag, size: size.filter(|_| answer.response.status().is_success() || answer.linked_size.is_some()) })
            }
            _ => Err(DownloadError::Unexpected { what: file.name.clone(), reason: "no usable ETag".to_owned() }),
        }
    }
}

/// What a file's contents are called, and how long they are.
struct Identity {
    etag: String,
    size: Option<u64>,
}

impl Identity {
    /// Large files are named by their sha256, small ones by git's own hash, which says nothing without git.
    fn sha256(&self) -> Option<String> {
        (self.etag.len() == 64 && is_etag(&self.etag)).then(|| self.etag.to_ascii_lowercase())
    }
}

impl RemoteFile {
    fn bytes(&self) -> Option<u64> {
        self.lfs.as_ref().and_then(|lfs| lfs.size).or(self.size)
    }

    fn identity(&self) -> Option<Identity> {
        let sha256 = self.lfs.as_ref().and_then(|lfs| lfs.sha256.clone());
        let etag = match (sha256, &self.lfs) {
            (Some(sha256), _) => sha256,
            (None, Some(_)) => return None,
            (None, None) => self.blob_id.clone()?,
        };
        is_etag(&etag).then(|| Identity { etag, size: self.bytes() })
    }
}

/// Hashes only: an etag becomes a file name.
fn is_etag(text: &str) -> bool {
    (32..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && is_etag(revision)
}

fn named(repo: &str, revision: &str) -> Repo {
    Repo::with_revision(repo.to_owned(), RepoType::Model, revision.to_owned())
}

fn token_in(file: &Path) -> Option<Secret> {
    let token = std::fs::read_to_string(file).ok()?;
    (!token.trim().is_empty()).then(|| Secret::new(token))
}

fn make_parents(files: &[&Path]) -> Result<(), DownloadError> {
    files
        .iter()
        .filter_map(|file| file.parent())
        .try_for_each(|folder| std::fs::create_dir_all(folder).map_err(|error| DownloadError::disk(folder, error)))
}

/// `snapshots/<commit>/<name>` -> `../../blobs/<etag>`, as deep as the name is.
fn link(folder: &Path, name: &str, etag: &str) -> Result<(), DownloadError> {
    let place = folder.join(name);
    let up = "../".repeat(Path::new(name).components().count() + 1);
    let target = PathBuf::from(format!("{up}blobs/{etag}"));
    if std::fs::read_link(&place).is_ok_and(|there| there == target) {
        return Ok(());
    }
    let made = match std::fs::remove_file(&place) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => std::os::unix::fs::symlink(&target, &place),
    };
    match made {
        // Another process linked it meanwhile, to the same contents.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(|error| DownloadError::disk(&place, error)),
    }
}
