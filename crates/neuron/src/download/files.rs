//! Which files of a repository a model needs.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use super::error::DownloadError;
use crate::source::is_inside;

pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// A repository at one commit, as `/api/models/{repo}/revision/{revision}?blobs=true` tells it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Listing {
    /// The commit.
    pub(crate) sha: String,
    pub(crate) siblings: Vec<RemoteFile>,
}

/// One file of it. Hubs that do not know `blobs=true` tell the name only.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RemoteFile {
    #[serde(rename = "rfilename")]
    pub(crate) name: String,
    pub(crate) size: Option<u64>,
    #[serde(rename = "blobId")]
    pub(crate) blob_id: Option<String>,
    pub(crate) lfs: Option<Lfs>,
}

/// What the hub knows of a large file.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Lfs {
    pub(crate) sha256: Option<String>,
    pub(crate) size: Option<u64>,
}

impl Listing {
    pub(crate) fn file(&self, name: &str) -> Option<&RemoteFile> {
        self.siblings.iter().find(|file| file.name == name)
    }

    /// Everything but the weights.
    pub(crate) fn descriptions(&self) -> impl Iterator<Item = &RemoteFile> {
        self.siblings.iter().filter(|file| is_description(&file.name))
    }

    /// The file with all weights, or else the index that names the shards.
    pub(crate) fn weights(&self, repo: &str) -> Result<&RemoteFile, DownloadError> {
        self.file(WEIGHTS)
            .or_else(|| self.file(INDEX))
            .ok_or_else(|| DownloadError::NoWeights { repo: repo.to_owned(), found: other_weights(&self.siblings) })
    }
}

fn is_description(name: &str) -> bool {
    const NAMES: [&str; 7] = [
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "sentence_bert_config.json",
        "modules.json",
        "1_Pooling/config.json",
    ];
    let tokenizer = name.starts_with("tokenizer") && name.ends_with(".json");
    NAMES.contains(&name) || ((tokenizer || name.starts_with("chat_template")) && !name.contains('/'))
}

fn other_weights(files: &[RemoteFile]) -> String {
    const KINDS: [&str; 5] = ["gguf", "bin", "pt", "pth", "onnx"];
    let kind = |file: &RemoteFile| Path::new(&file.name).extension().and_then(|kind| KINDS.into_iter().find(|known| kind == *known));
    let kinds: BTreeSet<&str> = files.iter().filter_map(kind).collect();
    match kinds.len() {
        0 => "it has no weights at all".to_owned(),
        _ => format!("it has {} files only", kinds.into_iter().collect::<Vec<_>>().join(", ")),
    }
}

/// The shards that an index names, each once. Names that lead out of the folder are an error.
pub(crate) fn shards(index: &[u8]) -> Result<BTreeSet<String>, String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(index).map_err(|error| format!("{INDEX}: {error}"))?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    match shards.iter().find(|name| !is_inside(name) || !name.ends_with(".safetensors")) {
        Some(name) => Err(format!("{INDEX} names `{name}`, which is no safetensors file of this repository")),
        None if shards.is_empty() => Err(format!("{INDEX} names no file")),
        None => Ok(shards),
    }
}

/// True when `folder` holds a configuration and every weight file.
pub(crate) fn is_whole(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).is_file();
    let all_shards =
        || shards(&std::fs::read(folder.join(INDEX)).unwrap_or_default()).is_ok_and(|names| names.iter().all(|name| has(name)));
    has("config.json") && (has(WEIGHTS) || all_shards())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(names: &[&str]) -> Listing {
        let file = |name: &&str| RemoteFile { name: (*name).to_owned(), size: None, blob_id: None, lfs: None };
        Listing { sha: String::new(), siblings: names.iter().map(file).collect() }
    }

    #[test]
    fn only_the_files_that_the_engine_reads_are_wanted() {
        let all = [
            ".gitattributes",
            "README.md",
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "tokenizer.model",
            "chat_template.jinja",
            "chat_template.json",
            "preprocessor_config.json",
            "modules.json",
            "1_Pooling/config.json",
            "onnx/config.json",
            "pytorch_model.bin",
            "old/tokenizer.json",
            "vocab.json",
        ];
        let wanted: Vec<_> = listing(&all).descriptions().map(|file| file.name.clone()).collect();
        let expected = [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "chat_template.json",
            "preprocessor_config.json",
            "modules.json",
            "1_Pooling/config.json",
        ];
        assert_eq!(wanted, expected);
    }

    #[test]
    fn weights_are_one_file_or_an_index_or_an_error_that_names_what_is_there() {
        let cases = [
            (vec![INDEX, WEIGHTS], Ok(WEIGHTS)),
            (vec![INDEX, "model-1.safetensors"], Ok(INDEX)),
            (vec!["m.gguf", "x.bin"], Err("bin, gguf files only")),
            (vec!["README.md"], Err("no weights at all")),
        ];
        for (names, expected) in cases {
            let found = listing(&names).weights("a/b").map(|file| file.name.clone()).map_err(|error| error.to_string());
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
                (found, expected) => panic!("{found:?} is not {expected:?}"),
            }
        }
    }

    #[test]
    fn an_index_cannot_name_files_elsewhere() {
        let good = br#"{"weight_map": {"a": "m-2.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}}"#;
        assert_eq!(shards(good).unwrap().into_iter().collect::<Vec<_>>(), ["m-1.safetensors", "m-2.safetensors"]);
        let bad = [
            r#"{"weight_map": {"a": "../m.safetensors"}}"#,
            r#"{"weight_map": {"a": "/m.safetensors"}}"#,
            r#"{"weight_map": {"a": "m.bin"}}"#,
            r#"{"weight_map": {}}"#,
            "{}",
            "",
        ];
        for index in bad {
            assert!(shards(index.as_bytes()).is_err(), "{index}");
        }
    }
}
