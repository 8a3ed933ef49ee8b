//! The memory that a checkpoint will take, from its headers: nothing of the weights is read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use cortex_placement::{DeclaredModel, Footprint, FootprintOrigin};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::gguf::Head;
use crate::safetensors::{self, Tensor};

/// The longest of the small files that is read: `config.json` and the index.
const JSON_BYTES_MAX: u64 = 64 << 20;

/// Beside weights and KV cache: activations, workspaces, the driver's share.
const OVERHEAD_BYTES: u64 = 768 << 20;

/// As much as `vram_mb` may say. What a header claims beyond fits nowhere either.
const DEVICE_MB_MAX: u64 = 1 << 24;

/// When the file does not say.
const CONTEXT_DEFAULT: u64 = 8192;
const PARALLEL_DEFAULT: u64 = 4;

/// What sizes a KV cache, under the names of `config.json`.
#[derive(Deserialize)]
struct Config {
    num_hidden_layers: u64,
    num_attention_heads: u64,
    num_key_value_heads: Option<u64>,
    hidden_size: u64,
    head_dim: Option<u64>,
    max_position_embeddings: Option<u64>,
}

/// Which file has each tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The footprint of `model`, where its checkpoint is at hand: a folder or a GGUF file, beside the file or in the hub's cache.
///
/// # Errors
/// What is wrong with a checkpoint that is at hand.
pub(crate) fn footprint(id: &str, model: &DeclaredModel, beside: &Path, hub: Option<&Path>) -> Result<Option<Footprint>, String> {
    let (source, revision) = (model.source.as_deref().unwrap_or(id), model.revision.as_deref());
    let sizes = match source.ends_with(".gguf") {
        true => gguf_file(source, revision, beside, hub).map(|file| of_gguf(&file)).transpose()?,
        false => match folder(source, revision, beside, hub) {
            Some(folder) => of_folder(&folder, model)?,
            None => None,
        },
    };
    let Some((weights, config)) = sizes else { return Ok(None) };
    let kv = config.map_or(0, |config| kv_bytes(&config, model));
    let devices = model.tensor_parallel.unwrap_or(1).max(1) as u64;
    let device_mb = weights.saturating_add(kv).div_ceil(devices).saturating_add(OVERHEAD_BYTES).div_ceil(1 << 20).min(DEVICE_MB_MAX);
    Ok(Some(Footprint { devices: devices as usize, device_mb, origin: FootprintOrigin::Checkpoint }))
}

/// `None` for a folder without weights.
fn of_folder(folder: &Path, model: &DeclaredModel) -> Result<Option<(u64, Option<Config>)>, String> {
    let config: Value = read_json(&folder.join("config.json"))?;
    let text = config.get("text_config").cloned().unwrap_or(config);
    Ok(weight_bytes(folder, model)?.map(|weights| (weights, serde_json::from_value(text).ok())))
}

fn read_json<T: DeserializeOwned>(file: &Path) -> Result<T, String> {
    let told = |why: &dyn Display| format!("{} {why}", file.display());
    let unreadable = |error: std::io::Error| told(&format_args!("cannot be read: {error}"));
    let mut bytes = Vec::new();
    File::open(file).and_then(|open| open.take(JSON_BYTES_MAX + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    if bytes.len() as u64 > JSON_BYTES_MAX {
        return Err(told(&format_args!("has more than {} MiB", JSON_BYTES_MAX >> 20)));
    }
    serde_json::from_slice(&bytes).map_err(|error| told(&format_args!("is not what it should be: {error}")))
}

fn of_gguf(file: &Path) -> Result<(u64, Option<Config>), String> {
    let head = Head::read(file).map_err(|flaw| format!("{} {flaw}", file.display()))?;
    let config = || {
        Some(Config {
            num_hidden_layers: head.number("block_count")?,
            num_attention_heads: head.number("attention.head_count")?,
            num_key_value_heads: head.number("attention.head_count_kv"),
            hidden_size: head.number("embedding_length")?,
            head_dim: head.number("attention.key_length"),
            max_position_embeddings: head.number("context_length"),
        })
    };
    Ok((head.bytes, config()))
}

/// `folder/file.gguf`, or `owner/repository/file.gguf` of the hub.
fn gguf_file(source: &str, revision: Option<&str>, beside: &Path, hub: Option<&Path>) -> Option<PathBuf> {
    let local = beside.join(source);
    if local.is_file() {
        return Some(local);
    }
    let second = source.match_indices('/').nth(1)?.0;
    Some(snapshot(&source[..second], revision, hub?).join(&source[second + 1..])).filter(|file| file.is_file())
}

fn folder(source: &str, revision: Option<&str>, beside: &Path, hub: Option<&Path>) -> Option<PathBuf> {
    let local = beside.join(source);
    if local.join("config.json").is_file() {
        return Some(local);
    }
    Some(snapshot(source, revision, hub?)).filter(|snapshot| snapshot.join("config.json").is_file())
}

fn snapshot(id: &str, revision: Option<&str>, hub: &Path) -> PathBuf {
    let repository = hub.join(format!("models--{}", id.replace('/', "--")));
    let revision = revision.unwrap_or("main");
    let commit = std::fs::read_to_string(repository.join("refs").join(revision)).unwrap_or_else(|_| revision.to_owned());
    repository.join("snapshots").join(commit.trim())
}

/// Every tensor of every file, as it will be held; `None` where there is no file.
fn weight_bytes(folder: &Path, model: &DeclaredModel) -> Result<Option<u64>, String> {
    let unreadable = |error: std::io::Error| format!("{} cannot be read: {error}", folder.display());
    let mut files = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        if file.extension().is_some_and(|extension| extension == "safetensors") {
            files.insert(file);
        }
    }
    // What was downloaded in part would be taken for small.
    let index = folder.join("model.safetensors.index.json");
    if index.is_file() {
        let named = read_json::<Index>(&index)?.weight_map.into_values().collect::<BTreeSet<String>>();
        if let Some(absent) = named.iter().find(|name| !files.contains(&folder.join(name))) {
            return Err(format!("{} names {absent}, which is not beside it", index.display()));
        }
    }
    let mut total = 0u64;
    for file in &files {
        let bytes = safetensors::sum(file, |tensor| held_bytes(tensor, model));
        total = total.saturating_add(bytes.map_err(|flaw| format!("{} {flaw}", file.display()))?);
    }
    Ok((!files.is_empty()).then_some(total))
}

/// Matrices are quantized or held in `dtype`; everything else stays as it is.
fn held_bytes(tensor: &Tensor, model: &DeclaredModel) -> u64 {
    let elements = tensor.shape.iter().copied().fold(1, u64::saturating_mul);
    let stored_bits = match tensor.dtype.as_str() {
        "F64" | "I64" | "U64" => 64,
        "F32" | "I32" | "U32" => 32,
        "BF16" | "F16" | "I16" | "U16" => 16,
        _ => 8,
    };
    let quantized = model.quant.as_deref().and_then(|quant| match quant {
        // Block formats carry their scales: bits per weight times two.
        "q8_0" => Some(17),
        "q6k" => Some(14),
        "q5k" => Some(11),
        "q4k" => Some(9),
        _ => None,
    });
    let twice_bits = match (quantized, model.dtype.as_deref()) {
        (Some(twice), _) if tensor.shape.len() == 2 => twice,
        (_, Some("f32")) => 64,
        (_, Some("bf16" | "f16")) => 32,
        _ => 2 * stored_bits,
    };
    elements.saturating_mul(twice_bits).div_ceil(16)
}

fn kv_bytes(config: &Config, model: &DeclaredModel) -> u64 {
    let heads = config.num_key_value_heads.unwrap_or(config.num_attention_heads);
    let head = config.head_dim.unwrap_or(config.hidden_size / config.num_attention_heads.max(1));
    let context =
        model.context.map_or(config.max_position_embeddings.unwrap_or(CONTEXT_DEFAULT).min(CONTEXT_DEFAULT), |context| context as u64);
    let parallel = model.parallel.map_or(PARALLEL_DEFAULT, |parallel| parallel as u64);
    let bytes = if model.dtype.as_deref() == Some("f32") { 4 } else { 2 };
    [config.num_hidden_layers, heads, head, bytes, context, parallel].into_iter().fold(2, u64::saturating_mul)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(fields: &Value) -> DeclaredModel {
        let mut all = serde_json::json!({ "residency": "on_demand", "priority": 1 });
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    /// One matrix of 1024 x 1024 and one vector of 1024, stored in bf16.
    fn checkpoint() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let header = r#"{"__metadata__":{"format":"pt"},"w":{"dtype":"BF16","shape":[1024,1024],"data_offsets":[0,2097152]},"n":{"dtype":"BF16","shape":[1024],"data_offsets":[2097152,2099200]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        std::fs::create_dir(folder.path().join("m")).unwrap();
        std::fs::write(folder.path().join("m/model.safetensors"), bytes).unwrap();
        let config =
            r#"{"num_hidden_layers":2,"num_attention_heads":8,"num_key_value_heads":2,"hidden_size":1024,"max_position_embeddings":4096}"#;
        std::fs::write(folder.path().join("m/config.json"), config).unwrap();
        folder
    }

    #[test]
    fn weights_and_cache_are_added_up() {
        let folder = checkpoint();
        let of = |fields| {
            let footprint = footprint("m", &model(&fields), folder.path(), None).unwrap();
            footprint.map(|footprint| (footprint.devices, footprint.device_mb))
        };
        // 2 MiB and 2 KiB of weights; 2 x 2 layers x 2 heads x 128 x 2 bytes x 4096 x 4 = 32 MiB of cache; 768 MiB besides.
        assert_eq!(of(serde_json::json!({})), Some((1, 803)));
        assert_eq!(of(serde_json::json!({ "context": 1024, "parallel": 1 })), Some((1, 773)));
        assert_eq!(of(serde_json::json!({ "dtype": "f32", "tensor_parallel": 2 })), Some((2, 803)));
        assert_eq!(of(serde_json::json!({ "source": "elsewhere" })), None);
    }

    #[test]
    fn a_gguf_file_is_found_beside_and_in_the_hub() {
        let folder = tempfile::tempdir().unwrap();
        let numbers = [
            ("qwen3.block_count", 2),
            ("qwen3.attention.head_count", 8),
            ("qwen3.attention.head_count_kv", 2),
            ("qwen3.embedding_length", 1024),
            ("qwen3.context_length", 4096),
        ];
        let file = crate::gguf::tests::file(&numbers, 2 << 20);
        let hub = folder.path().join("hub");
        let snapshot = hub.join("models--Org--Repo/snapshots/c0ffee");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(hub.join("models--Org--Repo/refs")).unwrap();
        std::fs::write(hub.join("models--Org--Repo/refs/main"), "c0ffee\n").unwrap();
        std::fs::write(snapshot.join("m-q4.gguf"), &file).unwrap();
        std::fs::write(folder.path().join("local.gguf"), &file).unwrap();
        let of = |source: &str| {
            let model = model(&serde_json::json!({ "source": source, "quant": "q4k" }));
            footprint("m", &model, folder.path(), Some(&hub)).map(|footprint| footprint.map(|footprint| footprint.device_mb))
        };
        // 2 MiB and the head; 32 MiB of cache; 768 MiB besides.
        assert_eq!([of("local.gguf"), of("Org/Repo/m-q4.gguf"), of("Org/Repo/other.gguf")], [Ok(Some(803)), Ok(Some(803)), Ok(None)]);
        let huge = ["block_count", "attention.head_count", "embedding_length"].map(|name| (format!("qwen3.{name}"), u32::MAX));
        let huge: Vec<(&str, u32)> = huge.iter().map(|(name, number)| (name.as_str(), *number)).collect();
        std::fs::write(folder.path().join("huge.gguf"), crate::gguf::tests::file(&huge, 0)).unwrap();
        assert_eq!(of("huge.gguf"), Ok(Some(DEVICE_MB_MAX)), "what overflows fits nowhere");
    }

    #[test]
    fn quantized_matrices_take_less() {
        let tensor = Tensor { dtype: "BF16".to_owned(), shape: vec![1024, 1024] };
        let bytes = |quant| held_bytes(&tensor, &model(&serde_json::json!({ "quant": quant })));
        assert_eq!(["none", "q8_0", "q6k", "q5k", "q4k"].map(bytes), [2_097_152, 1_114_112, 917_504, 720_896, 589_824]);
    }
}
