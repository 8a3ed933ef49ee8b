//! Checkpoints made from the fixtures: other element types, other layouts, other forms of `config.json`.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixtures::read_json;

/// A checkpoint in memory, to be changed and written elsewhere as one file.
pub(crate) struct Copied {
    pub(crate) config: Value,
    pub(crate) tensors: HashMap<String, Tensor>,
}

impl Copied {
    pub(crate) fn of(folder: &Path) -> Self {
        let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let weights = files.filter(|file| file.extension().is_some_and(|kind| kind == "safetensors"));
        let tensors = weights.flat_map(|file| candle_core::safetensors::load(file, &Device::Cpu).unwrap()).collect();
        Self { config: read_json(&folder.join("config.json")), tensors }
    }

    pub(crate) fn map(self, change: impl Fn(&str, &Tensor) -> Tensor) -> Self {
        let tensors = self.tensors.iter().map(|(name, tensor)| (name.clone(), change(name, tensor))).collect();
        Self { tensors, ..self }
    }

    pub(crate) fn write(&self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), self.config.to_string()).unwrap();
        candle_core::safetensors::save(&self.tensors, folder.path().join("model.safetensors")).unwrap();
        folder
    }
}

/// `config.json` as transformers 5.x writes it.
pub(crate) fn later_form(config: &Value) -> Value {
    let mut later = config.clone();
    let object = later.as_object_mut().unwrap();
    if let Some(text) = object.get_mut("text_config") {
        *text = later_form(text);
    }
    if let Some(dtype) = object.remove("torch_dtype") {
        object.insert("dtype".into(), dtype);
    }
    if let Some(theta) = object.remove("rope_theta") {
        let scaling = object.remove("rope_scaling").filter(|scaling| !scaling.is_null());
        let mut parameters = scaling.unwrap_or_else(|| json!({ "rope_type": "default" }));
        parameters["rope_theta"] = theta;
        object.insert("rope_parameters".into(), parameters);
    }
    later
}

/// A Qwen3-MoE checkpoint rewritten as the language half of a Qwen3-VL-MoE: experts fused and transposed, positions of three axes.
pub(crate) fn as_vl_moe(folder: &Path, config: &Value) -> TempDir {
    let Copied { tensors, .. } = Copied::of(folder);
    let size = |name: &str| config[name].as_u64().unwrap() as usize;
    let mut text = config.clone();
    let half = size("head_dim") / 2;
    text["rope_scaling"] =
        json!({ "rope_type": "default", "mrope_interleaved": true, "mrope_section": [half - 2 * (half / 3), half / 3, half / 3] });
    let config = json!({
        "architectures": ["Qwen3VLMoeForConditionalGeneration"],
        "text_config": text,
        "vision_config": {},
        "image_token_id": 1, "video_token_id": 2, "vision_start_token_id": 3, "vision_end_token_id": 4,
    });
    let single = |name: &&String| name.contains(".experts.");
    let renamed = |name: &String| name.replacen("model.", "model.language_model.", 1);
    let mut fused: HashMap<_, _> = tensors.keys().filter(|name| !single(name)).map(|name| (renamed(name), tensors[name].clone())).collect();
    for layer in 0..size("num_hidden_layers") {
        let experts = format!("model.layers.{layer}.mlp.experts");
        if !tensors.contains_key(&format!("{experts}.0.up_proj.weight")) {
            continue;
        }
        let transposed = |e: usize, name: &str| tensors[&format!("{experts}.{e}.{name}.weight")].t().unwrap();
        let gate_up = |e| Tensor::cat(&[transposed(e, "gate_proj"), transposed(e, "up_proj")], 1).unwrap();
        let stack = |of: &dyn Fn(usize) -> Tensor| Tensor::stack(&(0..size("num_experts")).map(of).collect::<Vec<_>>(), 0).unwrap();
        fused.insert(renamed(&format!("{experts}.gate_up_proj")), stack(&gate_up).contiguous().unwrap());
        fused.insert(renamed(&format!("{experts}.down_proj")), stack(&|e| transposed(e, "down_proj")).contiguous().unwrap());
    }
    Copied { config, tensors: fused }.write()
}
