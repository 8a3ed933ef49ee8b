//! Reference data shared by the tests: `testdata/parity`, and any further set of the same format that `PARITY_DIR` names.
//!
//! A set that is missing or empty fails, so that a test never passes because it found nothing to compare.

#![allow(dead_code, reason = "each behaviour uses the part it needs")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde_json::Value;

/// One folder of checkpoints, pictures and references; its README describes the format.
#[derive(Debug)]
pub(crate) struct FixtureSet {
    /// The folder.
    pub(crate) root: PathBuf,
}

/// Every set there is.
pub(crate) fn sets() -> Vec<FixtureSet> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/parity");
    let further = std::env::var_os("PARITY_DIR").map(PathBuf::from);
    let sets: Vec<_> = std::iter::once(own).chain(further).map(|root| FixtureSet { root }).collect();
    for set in &sets {
        assert!(!set.checkpoints().is_empty(), "`{}` holds no checkpoints", set.root.display());
    }
    sets
}

/// The checkpoint that is bundled with the product.
pub(crate) fn demo_checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/cortex-demo")
}

impl FixtureSet {
    /// Names of the checkpoints, sorted.
    pub(crate) fn checkpoints(&self) -> Vec<String> {
        let folder = self.root.join("checkpoints");
        let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.path().join("config.json").is_file())
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// The HF folder of a checkpoint.
    pub(crate) fn checkpoint(&self, name: &str) -> PathBuf {
        let folder = self.root.join("checkpoints").join(name);
        assert!(folder.is_dir(), "`{}` is missing", folder.display());
        folder
    }

    /// A picture (`square.png`).
    pub(crate) fn image(&self, file: &str) -> PathBuf {
        self.root.join("images").join(file)
    }

    /// The JSON of `refs/<name>.json` (`chat/text`, `qwen3-vl/rope_index`).
    pub(crate) fn refs(&self, name: &str) -> Value {
        read_json(&self.root.join("refs").join(format!("{name}.json")))
    }

    /// The cases of a checkpoint: name and JSON, in the file's order.
    pub(crate) fn cases(&self, checkpoint: &str) -> Vec<(String, Value)> {
        let all = self.refs(&format!("{checkpoint}/cases"));
        let cases = all["cases"].as_object().unwrap_or_else(|| panic!("`{checkpoint}` has no cases"));
        assert!(!cases.is_empty(), "`{checkpoint}` has no cases");
        cases.iter().map(|(name, case)| (name.clone(), case.clone())).collect()
    }

    /// The tensors of `refs/<name>.safetensors` (`llama/short`), on the CPU.
    pub(crate) fn tensors(&self, name: &str) -> HashMap<String, Tensor> {
        let file = self.root.join("refs").join(format!("{name}.safetensors"));
        candle_core::safetensors::load(&file, &Device::Cpu).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
    }
}

/// A JSON file, or a panic that names it.
pub(crate) fn read_json(file: &Path) -> Value {
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// A JSON array of ids.
pub(crate) fn ids(json: &Value) -> Vec<u32> {
    let ids = json.as_array().unwrap_or_else(|| panic!("not a list of ids: {json}"));
    ids.iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}
