//! Llama 3: the plain decoder, with frequencies that may be stretched for long contexts.

use super::config::fields::Fields;
use super::config::{ModelConfig, Network, rope};
use super::decoder::{Config, MlpConfig};
use super::registry::Source;
use crate::error::LoadError;
use crate::layers::attention::Heads;

/// Reads a Llama `config.json`.
pub fn config(source: &Source) -> Result<ModelConfig, LoadError> {
    let fields = &source.fields;
    let mlp = MlpConfig::Dense { intermediate_size: fields.size("intermediate_size")?, bias: fields.flag_or("mlp_bias", false)? };
    let decoder = decoder(fields, vec![mlp; fields.size("num_hidden_layers")?])?;
    causal(source, decoder, fields)
}

/// What all these families read alike from the language model's `fields`.
pub(super) fn decoder(fields: &Fields, mlps: Vec<MlpConfig>) -> Result<Config, LoadError> {
    let activation = fields.optional_text("hidden_act")?.unwrap_or_else(|| "silu".into());
    if activation != "silu" {
        return Err(fields.unsupported("hidden_act", activation, "only `silu` can be served"));
    }
    let heads = heads(fields)?;
    Ok(Config {
        vocab_size: fields.size("vocab_size")?,
        hidden_size: fields.size("hidden_size")?,
        heads,
        qk_norm: false,
        attention_bias: fields.flag_or("attention_bias", false)?,
        mlps,
        rms_norm_eps: fields.optional_positive("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        rope: rope::read(fields, heads.dim, 10_000.)?,
        tied: fields.flag_or("tie_word_embeddings", false)?,
        prefix: "model",
    })
}

/// A decoder as a whole model.
pub(super) fn causal(source: &Source, decoder: Config, fields: &Fields) -> Result<ModelConfig, LoadError> {
    Ok(ModelConfig {
        architecture: source.architecture,
        context_len_max: fields.size("max_position_embeddings")?,
        vocab_size: decoder.vocab_size,
        hidden_size: decoder.hidden_size,
        network: Network::Decoder(decoder),
        vision: None,
    })
}

fn heads(fields: &Fields) -> Result<Heads, LoadError> {
    let (hidden, query) = (fields.size("hidden_size")?, fields.size("num_attention_heads")?);
    let kv = fields.size_or("num_key_value_heads", query)?;
    if !query.is_multiple_of(kv) {
        return Err(fields.error("num_attention_heads", format!("must be a multiple of num_key_value_heads ({kv}), but is {query}")));
    }
    let dim = match fields.optional_size("head_dim")? {
        Some(dim) => dim,
        None if hidden.is_multiple_of(query) => hidden / query,
        None => return Err(fields.error("hidden_size", format!("must be a multiple of num_attention_heads ({query}), but is {hidden}"))),
    };
    if !dim.is_multiple_of(2) {
        return Err(fields.error("head_dim", format!("must be even, as rotary positions pair its halves, but is {dim}")));
    }
    Ok(Heads { query, kv, dim })
}
