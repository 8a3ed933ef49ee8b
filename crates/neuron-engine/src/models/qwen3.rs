//! Qwen3: the decoder with queries and keys normalised per head.

use super::config::ModelConfig;
use super::config::fields::Fields;
use super::decoder::{Config, MlpConfig};
use super::llama;
use super::registry::Source;
use crate::error::LoadError;

/// Reads a dense Qwen3 `config.json`.
pub fn config(source: &Source) -> Result<ModelConfig, LoadError> {
    llama::causal(source, decoder(&source.fields)?, &source.fields)
}

/// The dense decoder of the language model's `fields`.
pub(super) fn decoder(fields: &Fields) -> Result<Config, LoadError> {
    with_mlps(fields, vec![dense(fields)?; fields.size("num_hidden_layers")?])
}

/// The decoder with these feed-forward blocks.
pub(super) fn with_mlps(fields: &Fields, mlps: Vec<MlpConfig>) -> Result<Config, LoadError> {
    let sliding = fields.optional_texts("layer_types")?.unwrap_or_default().iter().any(|kind| kind != "full_attention");
    if fields.flag_or("use_sliding_window", false)? || sliding {
        return Err(fields.unsupported("use_sliding_window", true, "only full attention can be served"));
    }
    Ok(Config { qk_norm: true, ..llama::decoder(fields, mlps)? })
}

/// A dense feed-forward block.
pub(super) fn dense(fields: &Fields) -> Result<MlpConfig, LoadError> {
    Ok(MlpConfig::Dense { intermediate_size: fields.size("intermediate_size")?, bias: false })
}
