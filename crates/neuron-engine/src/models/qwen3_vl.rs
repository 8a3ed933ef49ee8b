//! Qwen3-VL: a Qwen3 decoder whose positions have three axes and which is shown pictures by a vision tower.

use super::config::fields::Fields;
use super::config::{ModelConfig, VisionConfig};
use super::decoder::Config;
use super::registry::Source;
use super::{llama, qwen3, qwen3_moe};
use crate::error::LoadError;
use crate::layers::moe::ExpertLayout;

/// Reads a dense Qwen3-VL `config.json`.
pub fn config(source: &Source) -> Result<ModelConfig, LoadError> {
    seeing(source, qwen3::decoder)
}

/// Reads a Qwen3-VL-MoE `config.json`: experts are fused in the file, and their weights always sum to one.
pub fn moe_config(source: &Source) -> Result<ModelConfig, LoadError> {
    seeing(source, |text| qwen3_moe::decoder(text, true, ExpertLayout::Fused))
}

fn seeing(source: &Source, decoder: impl FnOnce(&Fields) -> Result<Config, LoadError>) -> Result<ModelConfig, LoadError> {
    let text = source.fields.section("text_config")?;
    let decoder = decoder(&text)?;
    if decoder.rope.sections.is_none() {
        return Err(text.error("rope_scaling", "must have an mrope_section, as this model's positions have three axes"));
    }
    // The text section decides about tying where it says anything.
    let tied = if text.contains("tie_word_embeddings") { decoder.tied } else { source.fields.flag_or("tie_word_embeddings", false)? };
    let config = llama::causal(source, Config { tied, prefix: "model.language_model", ..decoder }, &text)?;
    Ok(ModelConfig { vision: Some(vision(&source.fields)?), ..config })
}

fn vision(fields: &Fields) -> Result<VisionConfig, LoadError> {
    let token = |name: &str| fields.count(name).map(|id| id as u32);
    Ok(VisionConfig {
        image_token_id: token("image_token_id")?,
        video_token_id: token("video_token_id")?,
        vision_start_token_id: token("vision_start_token_id")?,
        vision_end_token_id: token("vision_end_token_id")?,
        tower: fields.section("vision_config")?,
    })
}
