//! What is measured: a checkpoint, or a made-up one in a folder that goes away again.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use neuron_engine::models::config::ModelConfig;
use neuron_engine::models::registry::load_config;
use neuron_engine::weights::random::RandomCheckpoint;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::{BenchArgs, Shape};

pub(super) struct Subject {
    pub(super) name: String,
    pub(super) folder: PathBuf,
    pub(super) config: ModelConfig,
    /// The files with weights in them, and how many bytes they have; absent where weights are made up.
    pub(super) weights_files: Vec<PathBuf>,
    pub(super) weights_bytes: Option<u64>,
    pub(super) seed: u64,
    /// Removes the folder in the end, unless it is the user's.
    _scratch: Option<TempDir>,
}

impl Subject {
    pub(super) fn prepare(args: &BenchArgs) -> anyhow::Result<Self> {
        match (&args.folder, args.random) {
            (Some(folder), _) => Self::open(folder.clone(), folder.display().to_string(), args.seed, None),
            (None, Some(shape)) => Self::make_up(shape, args),
            (None, None) => anyhow::bail!("name a folder, or a shape with --random"),
        }
    }

    fn make_up(shape: Shape, args: &BenchArgs) -> anyhow::Result<Self> {
        let scratch = match args.keep {
            Some(_) => None,
            None => Some(tempfile::tempdir().context("cannot make a folder for the made-up model")?),
        };
        let folder = args.keep.clone().or(scratch.as_ref().map(|scratch| scratch.path().to_path_buf())).unwrap_or_default();
        fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder `{}`", folder.display()))?;
        fs::write(folder.join("config.json"), shape.config().to_string())?;
        fs::write(folder.join("tokenizer.json"), byte_tokenizer().to_string())?;
        let weights = RandomCheckpoint { seed: args.seed, tensors: shape.tensors() };
        weights.describe(&folder)?;
        if args.store || args.keep.is_some() {
            weights.store(&folder)?;
        }
        Self::open(folder, format!("{}, made up", shape.name), args.seed, scratch)
    }

    fn open(folder: PathBuf, name: String, seed: u64, scratch: Option<TempDir>) -> anyhow::Result<Self> {
        let config = load_config(&folder)?;
        let weights_files = weights_files(&folder).with_context(|| format!("cannot look into `{}`", folder.display()))?;
        let lens = weights_files.iter().map(|file| fs::metadata(file).map(|data| data.len()));
        let bytes = lens.sum::<std::io::Result<u64>>()?;
        let weights_bytes = (!weights_files.is_empty()).then_some(bytes);
        Ok(Self { name, folder, config, weights_files, weights_bytes, seed, _scratch: scratch })
    }
}

fn weights_files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let paths = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<Vec<_>>>()?;
    Ok(paths.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "safetensors")).collect())
}

/// A tokenizer with one token per byte, in GPT-2's spelling. Prompts are token ids, so no text ever goes through it.
fn byte_tokenizer() -> Value {
    let plain = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut stand_ins = (256..).filter_map(char::from_u32);
    let spelled = (0..=255u8).map(|byte| if plain(byte) { char::from(byte) } else { stand_ins.next().unwrap_or(' ') });
    let vocabulary: Map<String, Value> = spelled.enumerate().map(|(id, letter)| (letter.to_string(), json!(id))).collect();
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocabulary, "merges": [],
        },
    })
}
