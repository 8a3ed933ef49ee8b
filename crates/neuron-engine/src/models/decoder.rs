//! The decoder that Llama, Qwen3 and their relatives share. The families differ in their configuration only; see their files.

use candle_core::{D, DType, Device, Result, Tensor};
use neuron_kernels::{PagedBatch, PreNorm};

use super::{CausalLm, ModelInput, Visual};
use crate::cache::kv_cache::{CacheSpec, LayerCache, LayerCaches};
use crate::error::LoadError;
use crate::layers::attention::{Heads, QkvLinear, paged_attention};
use crate::layers::embedding::Embedding;
use crate::layers::linear::{LmHead, RowParallelLinear};
use crate::layers::mlp::GatedMlp;
use crate::layers::moe::{Moe, MoeConfig};
use crate::layers::ranks::Ranks;
use crate::layers::rms_norm::RmsNorm;
use crate::layers::rotary::{RopeConfig, Rotary, RotaryTable};
use crate::weights::Weights;

type Loaded<T> = std::result::Result<T, LoadError>;

/// The sizes of a decoder and what sets its family apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// V, rows of the embedding.
    pub vocab_size: usize,
    /// H, width of the residual stream.
    pub hidden_size: usize,
    /// Query and key/value heads, and their width D.
    pub heads: Heads,
    /// Whether queries and keys are normalised per head before they are rotated.
    pub qk_norm: bool,
    /// Whether the four attention projections have biases.
    pub attention_bias: bool,
    /// The feed-forward block of each layer, in order.
    pub mlps: Vec<MlpConfig>,
    /// What RMSNorm adds to the mean square.
    pub rms_norm_eps: f32,
    /// How positions turn queries and keys.
    pub rope: RopeConfig,
    /// Whether the embedding is also the head.
    pub tied: bool,
    /// Where the decoder lies among the checkpoint's tensors (`model`).
    pub prefix: &'static str,
}

/// The feed-forward block of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MlpConfig {
    /// One block for all tokens.
    Dense {
        /// I, the width inside.
        intermediate_size: usize,
        /// Whether the projections have biases.
        bias: bool,
    },
    /// A mixture of experts.
    Moe(MoeConfig),
}

/// What every layer of one step shares.
struct Step<'a> {
    rotary: RotaryTable,
    paged: &'a PagedBatch,
}

#[derive(Debug)]
struct Attention {
    qkv_proj: QkvLinear,
    o_proj: RowParallelLinear,
    qk_norm: Option<(RmsNorm, RmsNorm)>, // over D
}

impl Attention {
    fn load(config: &Config, weights: &Weights, ranks: &Ranks) -> Loaded<Self> {
        let Config { hidden_size, heads, attention_bias, rms_norm_eps, .. } = *config;
        let norm = |name: &str| RmsNorm::load(&weights.pp(name), heads.dim, rms_norm_eps);
        let columns = ranks.share(heads.query, "num_attention_heads")?;
        let columns = columns.start * heads.dim..columns.end * heads.dim;
        let o_proj = weights.pp("o_proj");
        Ok(Self {
            qkv_proj: QkvLinear::load(weights, hidden_size, heads, attention_bias, ranks)?,
            o_proj: RowParallelLinear::load(&o_proj, hidden_size, heads.query * heads.dim, columns, attention_bias, ranks)?,
            qk_norm: if config.qk_norm { Some((norm("q_norm")?, norm("k_norm")?)) } else { None },
        })
    }

    /// The normed `[T, H]` to `[T, H]`; and what was normed.
    fn forward(&self, x: PreNorm, step: &Step, cache: &LayerCache) -> Result<(Tensor, Tensor)> {
        let (qkv, x) = self.qkv_proj.forward(x)?; // [T, (heads + 2 kv heads) D]
        let mixed = paged_attention(&qkv, self.qk_norm.as_ref(), &step.rotary, cache, step.paged)?; // [T, heads * D]
        Ok((self.o_proj.forward(&mixed)?, x))
    }
}

#[derive(Debug)]
enum Mlp {
    Dense(GatedMlp),
    Moe(Moe),
}

impl Mlp {
    fn load(config: &MlpConfig, hidden: usize, weights: &Weights, ranks: &Ranks) -> Loaded<Self> {
        Ok(match config {
            MlpConfig::Dense { intermediate_size, bias } => Self::Dense(GatedMlp::load(weights, hidden, *intermediate_size, *bias, ranks)?),
            MlpConfig::Moe(config) => Self::Moe(Moe::load(weights, hidden, config, ranks)?),
        })
    }

    /// The normed `[T, H]` to `[T, H]`; and what was normed.
    fn forward(&self, x: PreNorm) -> Result<(Tensor, Tensor)> {
        match self {
            Self::Dense(mlp) => mlp.forward(x),
            Self::Moe(moe) => {
                let (normed, x) = x.apply()?;
                Ok((moe.forward(&normed)?, x))
            }
        }
    }
}

#[derive(Debug)]
struct DecoderLayer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

impl DecoderLayer {
    fn load(config: &Config, mlp: &MlpConfig, weights: &Weights, ranks: &Ranks) -> Loaded<Self> {
        let norm = |name: &str| RmsNorm::load(&weights.pp(name), config.hidden_size, config.rms_norm_eps);
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::load(config, &weights.pp("self_attn"), ranks)?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: Mlp::load(mlp, config.hidden_size, &weights.pp("mlp"), ranks)?,
        })
    }

    /// x + attention, then + feed-forward.
    fn forward(&self, stream: &Stream, step: &Step, cache: &LayerCache) -> Result<Stream> {
        let (mixed, x) = self.self_attn.forward(stream.under(&self.input_layernorm), step, cache)?;
        let stream = Stream { x, last: Some(mixed) };
        let (fed, x) = self.mlp.forward(stream.under(&self.post_attention_layernorm))?;
        Ok(Stream { x, last: Some(fed) })
    }
}

/// The residual stream, `[T, H]`. The last block's output joins it only in the norm that follows, in one pass over memory.
struct Stream {
    x: Tensor,
    last: Option<Tensor>,
}

impl Stream {
    /// The whole stream, about to be normed.
    fn under<'a>(&'a self, norm: &'a RmsNorm) -> PreNorm<'a> {
        norm.over(&self.x, self.last.as_ref())
    }

    /// Only these rows.
    fn rows(self, rows: &Tensor) -> Result<Self> {
        let last = self.last.map(|last| neuron_kernels::embedding(rows, &last)).transpose()?;
        Ok(Self { x: neuron_kernels::embedding(rows, &self.x)?, last })
    }
}

#[derive(Debug)]
struct Model {
    embed_tokens: Embedding,
    rotary: Rotary,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
}

impl Model {
    fn load(config: &Config, weights: &Weights, ranks: &Ranks) -> Loaded<Self> {
        let layers = weights.pp("layers");
        let layer = |(i, mlp)| DecoderLayer::load(config, mlp, &layers.pp(i), ranks);
        Ok(Self {
            embed_tokens: Embedding::load(&weights.pp("embed_tokens"), config.vocab_size, config.hidden_size)?,
            rotary: Rotary::new(&config.rope, config.heads.dim, weights.device())?,
            layers: config.mlps.iter().enumerate().map(layer).collect::<Loaded<_>>()?,
            norm: RmsNorm::load(&weights.pp("norm"), config.hidden_size, config.rms_norm_eps)?,
        })
    }

    /// The normed output of the rows that need logits, `[R, H]`.
    fn forward(&self, input: &ModelInput, caches: &LayerCaches) -> Result<Tensor> {
        let step = Step { rotary: self.rotary.table(&input.positions)?, paged: &input.paged };
        let mut x = self.embed_tokens.forward(&input.ids)?;
        if let Some(visual) = &input.visual {
            x = visual.replace(&x)?;
        }
        let mut stream = Stream { x, last: None };
        for (i, (layer, cache)) in self.layers.iter().zip(&caches.layers).enumerate() {
            stream = layer.forward(&stream, &step, cache)?;
            if let Some(visual) = &input.visual {
                stream.last = stream.last.map(|last| visual.deepen(last, i)).transpose()?;
            }
        }
        if let Some(rows) = &input.logit_rows {
            stream = stream.rows(rows)?;
        }
        Ok(stream.under(&self.norm).apply()?.0)
    }
}

impl Visual {
    /// The embedding, with features in the rows of image tokens.
    fn replace(&self, x: &Tensor) -> Result<Tensor> {
        let rows = self.rows.unsqueeze(D::Minus1)?.broadcast_as(self.features.shape())?.contiguous()?;
        x.scatter(&rows, &self.features.contiguous()?, 0)
    }

    /// Layer `i`'s output, with its share of the tower's deeper features added to the rows of image tokens.
    fn deepen(&self, x: Tensor, i: usize) -> Result<Tensor> {
        match self.deepstack.get(i) {
            Some(features) => x.index_add(&self.rows, features, 0),
            None => Ok(x),
        }
    }
}

/// A decoder with its head.
#[derive(Debug)]
pub struct ForCausalLm {
    model: Model,
    lm_head: LmHead,
    vocab_size: usize,
    cache_spec: CacheSpec,
    device: Device,
}

impl ForCausalLm {
    /// This rank's part of the decoder under the prefix that `config` names.
    pub fn load(config: &Config, weights: &Weights, ranks: &Ranks) -> Loaded<Self> {
        let model = Model::load(config, &weights.pp(config.prefix), ranks)?;
        let lm_head = match config.tied {
            true => LmHead::tied(model.embed_tokens.table(), ranks)?,
            false => LmHead::load(&weights.pp("lm_head"), config.vocab_size, config.hidden_size, ranks)?,
        };
        let cache_spec = config.cache_spec(weights.activations(), ranks)?;
        Ok(Self { model, lm_head, vocab_size: config.vocab_size, cache_spec, device: weights.device().clone() })
    }
}

impl CausalLm for ForCausalLm {
    fn cache_spec(&self) -> CacheSpec {
        self.cache_spec
    }

    fn forward(&self, input: &ModelInput, caches: &LayerCaches) -> Result<Tensor> {
        let x = self.model.forward(input, caches)?;
        match x.dim(0)? {
            0 => Tensor::zeros((0, self.vocab_size), DType::F32, &self.device),
            _ => self.lm_head.forward(&x),
        }
    }
}

impl Config {
    /// The cache of one rank, known before any weight is read.
    pub fn cache_spec(&self, dtype: DType, ranks: &Ranks) -> Loaded<CacheSpec> {
        let heads = self.heads.of_rank(ranks)?;
        Ok(CacheSpec { layers: self.mlps.len(), kv_heads: heads.kv, head_dim: heads.dim, dtype })
    }
}
