//! One file: continued where an earlier try stopped, checked, and only then given its name.

use std::fs::{File as StdFile, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Method, Response, StatusCode, Url};
use sha2::{Digest, Sha256};
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

use super::error::DownloadError;
use super::http::{Ask, HubClient, story};
use super::meter::Meter;

/// How often a lock that another process holds is looked at again.
const LOCK_LOOK: Duration = Duration::from_millis(250);

/// A file to fetch.
pub(crate) struct Blob {
    pub(crate) url: Url,
    /// Its name in the repository, for errors.
    pub(crate) name: String,
    pub(crate) size: Option<u64>,
    /// In lower-case hexadecimal; only large files have one.
    pub(crate) sha256: Option<String>,
    /// Where it is kept under its hash.
    pub(crate) target: PathBuf,
    pub(crate) lock: PathBuf,
}

/// What is here of it so far.
struct Partial {
    path: PathBuf,
    file: File,
    len: u64,
    hasher: Sha256,
}

/// How one connection ended.
enum End {
    Whole,
    /// Cut after this many new bytes.
    Cut {
        new_bytes: u64,
        reason: String,
    },
}

impl Blob {
    /// Fetches the file unless it is there already. Another process that fetches the same file is waited for.
    pub(crate) async fn fetch(&self, hub: &HubClient, meter: &Meter) -> Result<(), DownloadError> {
        let _lock = lock(&self.lock).await?;
        if let Ok(there) = tokio::fs::metadata(&self.target).await {
            meter.add(there.len());
            return Ok(());
        }
        let mut partial = Partial::open(incomplete(&self.target)).await?;
        meter.add(partial.len);
        let mut continued = partial.len > 0;
        loop {
            self.fill(hub, &mut partial, meter).await?;
            match self.check(&partial) {
                Ok(()) => return partial.keep(&self.target).await,
                // The part from an earlier run may be the damaged one: once more, from the start.
                Err(error) if continued => tracing::warn!("{error}"),
                Err(error) => {
                    partial.clear(meter).await?;
                    return Err(error);
                }
            }
            continued = false;
            partial.clear(meter).await?;
        }
    }

    /// Reconnects until everything is here. Each connection that brings something renews the patience.
    async fn fill(&self, hub: &HubClient, partial: &mut Partial, meter: &Meter) -> Result<(), DownloadError> {
        let mut failures = 0;
        while self.size != Some(partial.len) || partial.len == 0 {
            match self.connect(hub, partial, meter).await? {
                End::Whole => break,
                End::Cut { new_bytes, reason } => {
                    failures = if new_bytes > 0 { 1 } else { failures + 1 };
                    if failures >= hub.retry.tries_max {
                        return Err(DownloadError::Unreachable { what: self.name.clone(), tries: failures, reason });
                    }
                    tracing::warn!(file = self.name, at_byte = partial.len, "the connection broke off: {reason}");
                    tokio::time::sleep(hub.retry.wait(failures, None)).await;
                }
            }
        }
        Ok(())
    }

    async fn connect(&self, hub: &HubClient, partial: &mut Partial, meter: &Meter) -> Result<End, DownloadError> {
        let ask = Ask { method: Method::GET, url: self.url.clone(), what: self.name.clone(), from: partial.len };
        let response = hub.ask(&ask).await?.response;
        if !continues_at(&response, partial.len) {
            partial.clear(meter).await?;
        }
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(End::Cut { new_bytes: 0, reason: "the hub does not continue where the last try stopped".to_owned() });
        }
        let before = partial.len;
        let mut body = response.bytes_stream();
        while let Some(piece) = body.next().await {
            match piece {
                Ok(bytes) => {
                    partial.append(&bytes).await?;
                    meter.add(bytes.len() as u64);
                }
                Err(error) => {
                    partial.flush().await?;
                    return Ok(End::Cut { new_bytes: partial.len - before, reason: story(&error) });
                }
            }
        }
        partial.flush().await?;
        Ok(match self.size {
            Some(size) if partial.len < size => {
                End::Cut { new_bytes: partial.len - before, reason: format!("{} of {size} bytes came", partial.len) }
            }
            _ => End::Whole,
        })
    }

    fn check(&self, partial: &Partial) -> Result<(), DownloadError> {
        if let Some(expected) = self.size.filter(|size| *size != partial.len) {
            return Err(DownloadError::WrongSize { what: self.name.clone(), expected, found: partial.len });
        }
        let found = hex(&partial.hasher.clone().finalize());
        match self.sha256.as_ref().filter(|expected| **expected != found) {
            Some(expected) => Err(DownloadError::WrongHash { what: self.name.clone(), expected: expected.clone(), found }),
            None => Ok(()),
        }
    }
}

/// True when the body's first byte is byte `at` of the file.
fn continues_at(response: &Response, at: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let first = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
    match response.status() {
        StatusCode::PARTIAL_CONTENT => first == Some(at),
        _ => at == 0,
    }
}

impl Partial {
    async fn open(path: PathBuf) -> Result<Self, DownloadError> {
        let place = path.clone();
        let hashed = tokio::task::spawn_blocking(move || hash_file(&place)).await;
        let (hasher, len) = hashed.map_err(io::Error::other).flatten().map_err(|error| DownloadError::disk(&path, error))?;
        let opened = OpenOptions::new().append(true).create(true).open(&path).await;
        let file = opened.map_err(|error| DownloadError::disk(&path, error))?;
        Ok(Self { path, file, len, hasher })
    }

    async fn append(&mut self, bytes: &[u8]) -> Result<(), DownloadError> {
        self.file.write_all(bytes).await.map_err(|error| DownloadError::disk(&self.path, error))?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), DownloadError> {
        self.file.flush().await.map_err(|error| DownloadError::disk(&self.path, error))
    }

    async fn clear(&mut self, meter: &Meter) -> Result<(), DownloadError> {
        meter.take_back(self.len);
        self.hasher = Sha256::new();
        self.len = 0;
        let emptied = async {
            self.file.set_len(0).await?;
            self.file.rewind().await.map(drop)
        };
        emptied.await.map_err(|error| DownloadError::disk(&self.path, error))
    }

    async fn keep(self, target: &Path) -> Result<(), DownloadError> {
        let kept = async {
            self.file.sync_all().await?;
            tokio::fs::rename(&self.path, target).await
        };
        kept.await.map_err(|error| DownloadError::disk(target, error))
    }
}

/// The name under which Python's hub tools keep the unfinished file, too.
fn incomplete(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".incomplete");
    name.into()
}

fn hash_file(path: &Path) -> io::Result<(Sha256, u64)> {
    let mut hasher = Sha256::new();
    let mut file = match StdFile::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((hasher, 0)),
        Err(error) => return Err(error),
    };
    let (mut len, mut buffer) = (0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((hasher, len)),
            n => {
                hasher.update(&buffer[..n]);
                len += n as u64;
            }
        }
    }
}

/// Holds the file's lock until dropped. It is the lock that Python's hub tools take, so both can share a cache.
async fn lock(path: &Path) -> Result<StdFile, DownloadError> {
    let file = StdFile::create(path).map_err(|error| DownloadError::disk(path, error))?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_LOOK).await,
            Err(TryLockError::Error(error)) => return Err(DownloadError::disk(path, error)),
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
