//! Why a model's files could not be brought here. Each message says what to do next.

use std::io;
use std::path::{Path, PathBuf};

/// A download that failed. `what` is the file, or the repository itself.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// 401 or 403.
    #[error("the hub answered {status} for {what}: {hint}")]
    Refused {
        /// The status.
        status: u16,
        /// What was asked for.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// 404.
    #[error("the hub has no {what} (404): check the name and the revision")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// Not in the cache, and the hub must not be asked.
    #[error(
        "`{repo}` at `{revision}` is not whole in `{}`, and HF_HUB_OFFLINE is set: fetch it once while online, or copy it there",
        cache.display()
    )]
    Offline {
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
        /// The cache's folder.
        cache: PathBuf,
    },
    /// No connection, or it broke off each time.
    #[error("cannot fetch {what} after {tries} tries without progress: {reason}; check the network, HF_ENDPOINT and proxy settings")]
    Unreachable {
        /// What was asked for.
        what: String,
        /// How often it was tried.
        tries: u32,
        /// The last failure.
        reason: String,
    },
    /// 429 or 5xx each time.
    #[error("the hub answered {status} for {what}, {tries} times: it is busy or broken; try again later")]
    Busy {
        /// The last status.
        status: u16,
        /// What was asked for.
        what: String,
        /// How often it was tried.
        tries: u32,
    },
    /// An answer that a hub does not give.
    #[error("the hub's answer for {what} makes no sense: {reason}; check HF_ENDPOINT")]
    Unexpected {
        /// What was asked for.
        what: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The bytes are not those that the hub promised.
    #[error("{what} arrived damaged: its sha256 is {found}, the hub says {expected}; it was thrown away, try again")]
    WrongHash {
        /// The file.
        what: String,
        /// What the hub said.
        expected: String,
        /// What came.
        found: String,
    },
    /// More or fewer bytes than the hub promised.
    #[error("{what} arrived with {found} bytes, the hub says {expected}; it was thrown away, try again")]
    WrongSize {
        /// The file.
        what: String,
        /// What the hub said.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// The disk is full.
    #[error("no space left for `{}`: free some, or set hub.cache_dir (or HF_HOME) to a larger disk", path.display())]
    NoSpace {
        /// The file being written.
        path: PathBuf,
    },
    /// The disk refused.
    #[error("cannot write `{}`: {source}; check that this user may write there", path.display())]
    Disk {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Nothing that this engine reads.
    #[error("`{repo}` has no model.safetensors ({found}): choose a repository with safetensors weights")]
    NoWeights {
        /// The repository.
        repo: String,
        /// What it has instead.
        found: String,
    },
}

impl DownloadError {
    /// What 401 and 403 mean depends on whether a token went along. A repository that does not exist also answers 401.
    pub(crate) fn refused(status: u16, what: String, had_token: bool) -> Self {
        let hint = match (had_token, status) {
            (false, _) => "the repository needs a token: set HF_TOKEN, or hfTokenFile in services.neuron",
            (true, 401) => "the token is not valid, or there is no such repository: check HF_TOKEN and the name",
            (true, _) => "the token has no access: accept the model's terms on its page, or use another token",
        };
        Self::Refused { status, what, hint: hint.to_owned() }
    }

    /// What the operating system said about `path`.
    pub(crate) fn disk(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path: path.to_owned() },
            _ => Self::Disk { path: path.to_owned(), source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_a_forbidden_one() {
        let said = |kind: io::ErrorKind| DownloadError::disk(Path::new("/x"), kind.into()).to_string();
        assert!(said(io::ErrorKind::StorageFull).starts_with("no space left for `/x`"));
        assert!(said(io::ErrorKind::QuotaExceeded).starts_with("no space left for `/x`"));
        assert!(said(io::ErrorKind::PermissionDenied).starts_with("cannot write `/x`"));
    }
}
