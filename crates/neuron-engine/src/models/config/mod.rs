//! What `config.json` says about a model, checked and typed.

pub mod fields;
pub mod rope;

use cortex_core::Capability;

use super::{bert, decoder};

/// A model's configuration, ready to be built.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// The architecture as `config.json` calls it (`Qwen3ForCausalLM`).
    pub architecture: &'static str,
    /// Tokens of context that the model was made for.
    pub context_len_max: usize,
    /// Rows of the embedding table; at least the tokenizer's vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream, and of an encoder's vectors.
    pub hidden_size: usize,
    /// The network and its sizes.
    pub network: Network,
    /// What a model that sees pictures has on top.
    pub vision: Option<VisionConfig>,
}

impl ModelConfig {
    /// What the model can be asked for.
    pub fn capabilities(&self) -> Vec<Capability> {
        match (&self.network, &self.vision) {
            (Network::Bert(config), _) if config.head.is_some() => vec![Capability::Rerank],
            (Network::Bert(_), _) => vec![Capability::Embeddings],
            (Network::Decoder(_), None) => vec![Capability::Chat],
            (Network::Decoder(_), Some(_)) => vec![Capability::Chat, Capability::Vision],
        }
    }
}

/// The kinds of network that are implemented.
#[derive(Clone, Debug)]
pub enum Network {
    /// Continues text.
    Decoder(decoder::Config),
    /// Turns texts into vectors.
    Bert(bert::Config),
}

/// The vision half of `config.json`.
#[derive(Clone, Debug)]
pub struct VisionConfig {
    /// The token that stands for one merged patch of a picture.
    pub image_token_id: u32,
    /// The token that stands for one merged patch of a video.
    pub video_token_id: u32,
    /// The token before a picture.
    pub vision_start_token_id: u32,
    /// The token after a picture.
    pub vision_end_token_id: u32,
    /// `vision_config`, for the tower to read.
    pub tower: fields::Fields,
}
