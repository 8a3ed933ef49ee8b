//! The demo model, carried inside the program so that `cortex up` works from anywhere without a download.
//!
//! The engine reads checkpoints from folders, so the files are written once to the user's cache folder. The folder's name is a hash of
//! the content: two versions of the program never disturb each other.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::Xxh3;

use crate::error::{CliError, Result};

/// What clients call it.
pub(crate) const MODEL_ID: &str = "cortex-demo";

macro_rules! bundled {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/cortex-demo/", $name)).as_slice())),*]
    };
}

/// All that an engine needs of the checkpoint, and its card.
const FILES: &[(&str, &[u8])] = bundled!(
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
);

/// Tells the drafts of one process apart.
static DRAFTS: AtomicU64 = AtomicU64::new(0);

/// The folder of the checkpoint, written if it is not there yet.
pub(crate) fn folder() -> Result<PathBuf> {
    let cache = cache_folder().ok_or_else(|| {
        CliError::new("there is no folder to keep the demo model in: neither XDG_CACHE_HOME nor HOME is set")
            .note("set one of them, or serve a model of your own with --model PATH")
    })?;
    unpack(&cache).map_err(|error| {
        CliError::new(format!("cannot write the demo model to {}: {error}", cache.display()))
            .note("set XDG_CACHE_HOME to a folder that can be written, or serve a model of your own with --model PATH")
    })
}

fn cache_folder() -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache"))).map(|cache| cache.join("cortex"))
}

/// Writes the files beside their final place and moves them there in one step, so that no reader ever sees half of them.
fn unpack(cache: &Path) -> io::Result<PathBuf> {
    let target = cache.join(format!("{MODEL_ID}-{:016x}", content_hash()));
    if is_complete(&target) {
        return Ok(target);
    }
    DirBuilder::new().recursive(true).mode(0o700).create(cache)?;
    let draft = cache.join(format!(".{MODEL_ID}-{}-{}", std::process::id(), DRAFTS.fetch_add(1, Ordering::Relaxed)));
    let written = write(&draft).and_then(|()| replace(&draft, &target));
    if written.is_err() {
        // The error that is reported is the one that led here.
        let _ = fs::remove_dir_all(&draft);
    }
    // Another process may have been first; its files are the same.
    if is_complete(&target) { Ok(target) } else { written.and(Err(io::Error::other("the files changed while they were written"))) }
}

fn write(draft: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(draft)?;
    FILES.iter().try_for_each(|(name, bytes)| fs::write(draft.join(name), bytes))
}

/// A folder that is not empty cannot be renamed over: what stands there is either another process's work, or damaged and removed.
fn replace(draft: &Path, target: &Path) -> io::Result<()> {
    match fs::rename(draft, target) {
        Err(_) if is_complete(target) => fs::remove_dir_all(draft),
        Err(_) if target.exists() => fs::remove_dir_all(target).and_then(|()| fs::rename(draft, target)),
        outcome => outcome,
    }
}

fn is_complete(folder: &Path) -> bool {
    FILES.iter().all(|(name, bytes)| fs::read(folder.join(name)).is_ok_and(|found| found == *bytes))
}

fn content_hash() -> u64 {
    let mut hash = Xxh3::new();
    for (name, bytes) in FILES {
        hash.update(name.as_bytes());
        hash.update(&bytes.len().to_le_bytes());
        hash.update(bytes);
    }
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checkpoint_is_written_once_and_repaired_when_damaged() {
        let cache = tempfile::tempdir().unwrap();
        let folder = unpack(cache.path()).unwrap();
        let weights = folder.join("model.safetensors");
        let written = fs::metadata(&weights).unwrap().modified().unwrap();
        assert_eq!(unpack(cache.path()).unwrap(), folder);
        assert_eq!(fs::metadata(&weights).unwrap().modified().unwrap(), written, "a complete folder is left alone");

        fs::write(&weights, b"damaged").unwrap();
        assert_eq!(unpack(cache.path()).unwrap(), folder);
        assert!(is_complete(&folder));
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1, "no drafts are left");
    }

    #[test]
    fn many_processes_may_write_it_at_once() {
        let cache = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..2).map(|_| scope.spawn(|| unpack(cache.path()))).collect();
            for writer in writers {
                assert!(is_complete(&writer.join().unwrap().unwrap()));
            }
        });
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_an_error() {
        let cache = tempfile::NamedTempFile::new().unwrap();
        assert!(unpack(cache.path()).is_err());
    }
}
