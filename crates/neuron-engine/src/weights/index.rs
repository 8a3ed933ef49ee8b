//! Which file holds which tensor.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::Deserialize;

use super::file::WeightsFile;
use super::random::{self, RandomFile};
use super::safetensors::SafetensorsFile;
use super::{Checkpoint, Place};
use crate::error::LoadError;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The part of `model.safetensors.index.json` that matters.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Opens every weights file of the folder. A single file wins over an index, as a folder that has both was merged.
pub(super) fn open(folder: &Path) -> Result<Checkpoint, LoadError> {
    let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
    if single.exists() {
        return open_single(single);
    }
    if index.exists() {
        return open_sharded(folder, index);
    }
    let made_up = folder.join(random::FILE);
    if made_up.exists() {
        return Ok(lone(made_up, WeightsFile::Random(RandomFile::open(folder)?)));
    }
    let hint = format!("a model folder needs it, or a {INDEX} with the files it names; download the model again");
    Err(LoadError::Missing { file: single, hint })
}

fn open_single(source: PathBuf) -> Result<Checkpoint, LoadError> {
    let file = WeightsFile::Stored(SafetensorsFile::open(&source)?);
    Ok(lone(source, file))
}

/// A checkpoint of one file.
fn lone(source: PathBuf, file: WeightsFile) -> Checkpoint {
    let places = file.names().into_iter().map(|name| (name, Place { file: 0, used: AtomicBool::new(false) })).collect();
    Checkpoint { source, files: vec![file], places, loaded_bytes: 0.into() }
}

fn open_sharded(folder: &Path, source: PathBuf) -> Result<Checkpoint, LoadError> {
    let text = std::fs::read(&source).map_err(|error| LoadError::Unreadable { file: source.clone(), source: error })?;
    let malformed = |what| LoadError::Malformed { file: source.clone(), what };
    let index: Index = serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
    let mut files: Vec<WeightsFile> = Vec::new();
    let mut opened = BTreeMap::new();
    let mut places = BTreeMap::new();
    for (name, file_name) in index.weight_map {
        let file = match opened.get(&file_name) {
            Some(file) => *file,
            None => {
                files.push(open_shard(folder, &file_name, &source)?);
                opened.insert(file_name.clone(), files.len() - 1);
                files.len() - 1
            }
        };
        if files[file].info(&name).is_none() {
            return Err(malformed(format!("it says that `{name}` is in `{file_name}`, which does not have it")));
        }
        places.insert(name, Place { file, used: AtomicBool::new(false) });
    }
    Ok(Checkpoint { source, files, places, loaded_bytes: 0.into() })
}

fn open_shard(folder: &Path, file_name: &str, index: &Path) -> Result<WeightsFile, LoadError> {
    // A name with a folder in it could reach outside the checkpoint.
    if Path::new(file_name).file_name() != Some(file_name.as_ref()) {
        return Err(LoadError::Malformed { file: index.to_owned(), what: format!("`{file_name}` is not a plain file name") });
    }
    let file = folder.join(file_name);
    if !file.exists() {
        return Err(LoadError::Missing { file, hint: format!("{INDEX} names it; download the model again") });
    }
    SafetensorsFile::open(&file).map(WeightsFile::Stored)
}
