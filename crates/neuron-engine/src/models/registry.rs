//! Which architectures exist: one line each.

use std::path::Path;
use std::sync::Arc;

use super::config::fields::Fields;
use super::config::{ModelConfig, Network};
use super::qwen3_vl_vision::VisionSwitches;
use super::{CausalLm, Encoder, VisionTower, bert, decoder, llama, qwen3, qwen3_moe, qwen3_vl, qwen3_vl_vision, roberta};
use crate::device::collective::{Collective, Shard};
use crate::error::LoadError;
use crate::layers::ranks::Ranks;
use crate::weights::Weights;

/// An architecture's name and how its configuration is read.
type Architecture = (&'static str, fn(&Source) -> Result<ModelConfig, LoadError>);

const ARCHITECTURES: [Architecture; 11] = [
    ("LlamaForCausalLM", llama::config),
    ("Qwen3ForCausalLM", qwen3::config),
    ("Qwen3MoeForCausalLM", qwen3_moe::config),
    ("Qwen3VLForConditionalGeneration", qwen3_vl::config),
    ("Qwen3VLMoeForConditionalGeneration", qwen3_vl::moe_config),
    ("BertModel", bert::config),
    ("BertForSequenceClassification", bert::ranking_config),
    ("RobertaModel", roberta::config),
    ("RobertaForSequenceClassification", roberta::ranking_config),
    ("XLMRobertaModel", roberta::config),
    ("XLMRobertaForSequenceClassification", roberta::ranking_config),
];

/// Where a configuration is read from.
pub struct Source<'a> {
    /// The architecture found in `config.json`.
    pub architecture: &'static str,
    /// The checkpoint's folder, for files beside `config.json`.
    pub folder: &'a Path,
    /// `config.json`.
    pub fields: Fields,
}

/// A model on this rank's device.
pub enum Model {
    /// Continues text.
    Causal(Box<dyn CausalLm>),
    /// Turns texts into vectors.
    Encoder(Box<dyn Encoder>),
}

/// Reads and checks `config.json` (as written by transformers 4.x or 5.x) and what belongs to it.
pub fn load_config(folder: &Path) -> Result<ModelConfig, LoadError> {
    let hint = "a model folder needs it; is this the folder of a Hugging Face checkpoint?";
    let fields = Fields::read(&folder.join("config.json"), hint)?;
    if fields.contains("quantization_config") {
        return Err(fields.unsupported("quantization_config", "present", "choose the model's bf16 or f16 checkpoint"));
    }
    let (architecture, read) = find(&fields)?;
    read(&Source { architecture, folder, fields })
}

/// Reads this rank's part of the weights and puts the network together. Every rank builds with the same `config`.
pub fn build(config: &ModelConfig, weights: &Weights, comm: Arc<dyn Collective>, shard: Shard) -> Result<Model, LoadError> {
    let ranks = Ranks { shard, comm };
    match &config.network {
        Network::Decoder(config) => Ok(Model::Causal(Box::new(decoder::ForCausalLm::load(config, weights, &ranks)?))),
        Network::Bert(config) => Ok(Model::Encoder(Box::new(bert::Model::load(config, weights)?))),
    }
}

/// The eyes of a model that has them. Every rank holds all of them.
pub fn build_vision(config: &ModelConfig, weights: &Weights, switches: VisionSwitches) -> Result<Option<Box<dyn VisionTower>>, LoadError> {
    let tower = |vision| qwen3_vl_vision::Model::load(vision, &weights.pp("model.visual"), switches);
    Ok(config.vision.as_ref().map(tower).transpose()?.map(|tower| Box::new(tower) as Box<dyn VisionTower>))
}

fn find(fields: &Fields) -> Result<Architecture, LoadError> {
    let names = fields.optional_texts("architectures")?.unwrap_or_default();
    let known = |name: &String| ARCHITECTURES.into_iter().find(|(known, _)| known == name);
    names.iter().find_map(known).ok_or_else(|| match names.first() {
        None => fields.error("architectures", "is missing"),
        Some(name) => LoadError::UnknownArchitecture { name: name.clone(), known: ARCHITECTURES.map(|(name, _)| name).join(", ") },
    })
}
