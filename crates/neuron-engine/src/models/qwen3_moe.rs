//! Qwen3-MoE: Qwen3 with experts in some or all of its layers.

use super::config::ModelConfig;
use super::config::fields::Fields;
use super::decoder::{Config, MlpConfig};
use super::registry::Source;
use super::{llama, qwen3};
use crate::error::LoadError;
use crate::layers::moe::{ExpertLayout, MoeConfig};

/// Reads a Qwen3-MoE `config.json`.
pub fn config(source: &Source) -> Result<ModelConfig, LoadError> {
    let renormalise = source.fields.flag_or("norm_topk_prob", false)?;
    llama::causal(source, decoder(&source.fields, renormalise, ExpertLayout::PerExpert)?, &source.fields)
}

/// The decoder of the language model's `fields`.
pub(super) fn decoder(fields: &Fields, renormalise: bool, layout: ExpertLayout) -> Result<Config, LoadError> {
    let layers = fields.size("num_hidden_layers")?;
    let dense_only = fields.optional_counts("mlp_only_layers")?.unwrap_or_default();
    let every = fields.size_or("decoder_sparse_step", 1)?;
    let has_experts = fields.optional_count("num_experts")? != Some(0);
    let is_moe = |layer: usize| has_experts && !dense_only.contains(&layer) && (layer + 1).is_multiple_of(every);
    let mlp = |layer| if is_moe(layer) { moe(fields, renormalise, layout) } else { qwen3::dense(fields) };
    qwen3::with_mlps(fields, (0..layers).map(mlp).collect::<Result<_, _>>()?)
}

fn moe(fields: &Fields, renormalise: bool, layout: ExpertLayout) -> Result<MlpConfig, LoadError> {
    let (experts, experts_per_token) = (fields.size("num_experts")?, fields.size("num_experts_per_tok")?);
    if experts_per_token > experts {
        let what = format!("must be at most num_experts ({experts}), but is {experts_per_token}");
        return Err(fields.error("num_experts_per_tok", what));
    }
    let intermediate_size = fields.size("moe_intermediate_size")?;
    Ok(MlpConfig::Moe(MoeConfig { experts, experts_per_token, intermediate_size, renormalise, layout }))
}
