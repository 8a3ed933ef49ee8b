//! BERT as sentence-transformers uses it: a bidirectional encoder whose rows are pooled into one vector per text, or whose head tells how
//! well the second of two texts answers the first.

use candle_core::{DType, Device, Result, Tensor};

use super::Encoder;
use super::config::fields::Fields;
use super::config::{ModelConfig, Network};
use super::pooling::{Pooling, PoolingMode};
use super::registry::Source;
use crate::error::LoadError;
use crate::layers::embedding::Embedding;
use crate::layers::layer_norm::LayerNorm;
use crate::layers::linear::{Linear, Rows};
use crate::weights::Weights;

type Loaded<T> = std::result::Result<T, LoadError>;

/// The sizes of the encoder, and how its rows become one vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// V, rows of the word embedding.
    pub vocab_size: usize,
    /// Rows of the position embedding.
    pub positions: usize,
    /// Rows of the token-type embedding.
    pub token_types: usize,
    /// H, width of the rows.
    pub hidden_size: usize,
    /// I, width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// The feed-forward block's activation.
    pub activation: Activation,
    /// What LayerNorm adds to the variance.
    pub layer_norm_eps: f32,
    /// How rows become a vector.
    pub pooling: Pooling,
    /// The position of a text's first token.
    pub first_position: usize,
    /// Where the encoder lies among the checkpoint's tensors, if not at the top.
    pub prefix: &'static str,
    /// The head of one output, for pairs of texts.
    pub head: Option<HeadNames>,
}

/// What sets BERT's relatives apart.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Where the encoder lies in a checkpoint that was saved with a head.
    pub prefix: &'static str,
    /// That head.
    pub head: HeadNames,
    /// The texts of a pair are told apart by the type of their tokens, not only by what stands between them.
    pub types_pairs: bool,
    /// Positions count up from behind that of the padding, not from 0.
    pub positions_after_padding: bool,
}

/// Where the two matrices of a ranking head lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadNames {
    /// `[H, H]`
    pub dense: &'static str,
    /// `[1, H]`
    pub output: &'static str,
}

const BERT: Family = Family {
    prefix: "bert",
    head: HeadNames { dense: "bert.pooler.dense", output: "classifier" },
    types_pairs: true,
    positions_after_padding: false,
};

/// The two forms of GELU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// With the error function.
    GeluErf,
    /// With its tanh approximation.
    GeluTanh,
}

/// Reads the `config.json` of a cross-encoder.
pub fn ranking_config(source: &Source) -> Loaded<ModelConfig> {
    read_ranking(source, &BERT)
}

/// Reads a BERT `config.json` and the sentence-transformers files beside it.
pub fn config(source: &Source) -> Loaded<ModelConfig> {
    read(source, &BERT, None)
}

/// Reads the `config.json` of a family's cross-encoder.
pub fn read_ranking(source: &Source, family: &Family) -> Loaded<ModelConfig> {
    let labels = source.fields.optional_section("id2label")?.unwrap_or_default();
    if !labels.contains("0") || labels.contains("1") {
        let what = "must name one label: only models that tell how well one text answers another can be served, no other classifiers";
        return Err(source.fields.error("id2label", what));
    }
    read(source, family, Some(family.head))
}

/// Reads a family's `config.json` and the sentence-transformers files beside it.
pub fn read(source: &Source, family: &Family, head: Option<HeadNames>) -> Loaded<ModelConfig> {
    let fields = &source.fields;
    let first_position = if family.positions_after_padding { fields.optional_count("pad_token_id")?.unwrap_or(1) + 1 } else { 0 };
    let config = Config {
        vocab_size: fields.size("vocab_size")?,
        positions: fields.size("max_position_embeddings")?,
        token_types: fields.size_or("type_vocab_size", 2)?,
        hidden_size: fields.size("hidden_size")?,
        intermediate_size: fields.size("intermediate_size")?,
        layers: fields.size("num_hidden_layers")?,
        heads: fields.size("num_attention_heads")?,
        activation: activation(fields)?,
        layer_norm_eps: fields.optional_positive("layer_norm_eps")?.unwrap_or(1e-12) as f32,
        pooling: Pooling::read(source.folder)?,
        first_position,
        prefix: family.prefix,
        head,
    };
    if head.is_some() && family.types_pairs && config.token_types < 2 {
        return Err(fields.error("type_vocab_size", "must be at least 2: this model reads pairs of texts"));
    }
    if config.positions <= first_position {
        let what = format!("must be above {first_position}, the position of the first token, but is {}", config.positions);
        return Err(fields.error("max_position_embeddings", what));
    }
    if !config.hidden_size.is_multiple_of(config.heads) {
        let what = format!("must be a multiple of num_attention_heads ({}), but is {}", config.heads, config.hidden_size);
        return Err(fields.error("hidden_size", what));
    }
    let position_kind = fields.optional_text("position_embedding_type")?.unwrap_or_else(|| "absolute".into());
    if position_kind != "absolute" {
        return Err(fields.unsupported("position_embedding_type", position_kind, "only `absolute` can be served"));
    }
    let sentence = Fields::read_if_present(&source.folder.join("sentence_bert_config.json"))?.unwrap_or_default();
    Ok(ModelConfig {
        architecture: source.architecture,
        context_len_max: sentence.size_or("max_seq_length", config.context())?.min(config.context()),
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        network: Network::Bert(config),
        vision: None,
    })
}

impl Config {
    /// Tokens of the longest text.
    fn context(&self) -> usize {
        self.positions - self.first_position
    }
}

fn activation(fields: &Fields) -> Loaded<Activation> {
    let name = fields.optional_text("hidden_act")?.unwrap_or_else(|| "gelu".into());
    match name.as_str() {
        "gelu" => Ok(Activation::GeluErf),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        _ => Err(fields.unsupported("hidden_act", name, "only `gelu`, `gelu_new` and `gelu_pytorch_tanh` can be served")),
    }
}

#[derive(Debug)]
struct Embeddings {
    word: Embedding,       // [V, H]
    position: Embedding,   // [positions, H]
    token_type: Embedding, // [types, H]
    norm: LayerNorm,
}

impl Embeddings {
    fn load(config: &Config, weights: &Weights) -> Loaded<Self> {
        Ok(Self {
            word: Embedding::load(&weights.pp("word_embeddings"), config.vocab_size, config.hidden_size)?,
            position: Embedding::load(&weights.pp("position_embeddings"), config.positions, config.hidden_size)?,
            token_type: Embedding::load(&weights.pp("token_type_embeddings"), config.token_types, config.hidden_size)?,
            norm: LayerNorm::load(&weights.pp("LayerNorm"), config.hidden_size, config.layer_norm_eps)?,
        })
    }

    /// `[T]` ids, `[T]` types and `[T]` positions to `[T, H]`.
    fn forward(&self, ids: &Tensor, types: &Tensor, positions: &Tensor) -> Result<Tensor> {
        let typed = (self.word.forward(ids)? + self.token_type.forward(types)?)?;
        self.norm.forward(&(typed + self.position.forward(positions)?)?)
    }
}

#[derive(Debug)]
struct Attention {
    qkv: Linear, // [3 H, H]
    output: Linear,
    norm: LayerNorm,
    heads: usize,
}

impl Attention {
    fn load(config: &Config, weights: &Weights) -> Loaded<Self> {
        let hidden = config.hidden_size;
        let rows = ["query", "key", "value"].map(|name| Rows::all(name, hidden));
        let output = weights.pp("output");
        Ok(Self {
            qkv: Linear::stacked(&weights.pp("self"), &rows, hidden, true)?,
            output: Linear::load(&output.pp("dense"), hidden, hidden, true)?,
            norm: LayerNorm::load(&output.pp("LayerNorm"), hidden, config.layer_norm_eps)?,
            heads: config.heads,
        })
    }

    /// `[T, H]` to `[T, H]`; each row sees all of its own text.
    fn forward(&self, x: &Tensor, segment_lens: &[usize]) -> Result<Tensor> {
        let (tokens, hidden) = x.dims2()?;
        let dim = hidden / self.heads;
        let qkv = self.qkv.forward(x)?;
        let part = |i: usize| qkv.narrow(1, i * hidden, hidden)?.contiguous()?.reshape((tokens, self.heads, dim));
        let mixed = neuron_kernels::segment_attention(&part(0)?, &part(1)?, &part(2)?, segment_lens, (dim as f32).powf(-0.5))?;
        self.norm.forward(&(self.output.forward(&mixed.flatten_from(1)?)? + x)?)
    }
}

#[derive(Debug)]
struct Mlp {
    intermediate: Linear, // [I, H]
    output: Linear,       // [H, I]
    norm: LayerNorm,
    activation: Activation,
}

impl Mlp {
    fn load(config: &Config, weights: &Weights) -> Loaded<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let output = weights.pp("output");
        Ok(Self {
            intermediate: Linear::load(&weights.pp("intermediate").pp("dense"), inner, hidden, true)?,
            output: Linear::load(&output.pp("dense"), hidden, inner, true)?,
            norm: LayerNorm::load(&output.pp("LayerNorm"), hidden, config.layer_norm_eps)?,
            activation: config.activation,
        })
    }

    /// `[T, H]` to `[T, H]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let inner = self.activation.forward(&self.intermediate.forward(x)?)?;
        self.norm.forward(&(self.output.forward(&inner)? + x)?)
    }
}

impl Activation {
    fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::GeluErf => neuron_kernels::gelu_erf(x),
            Self::GeluTanh => neuron_kernels::gelu_tanh(x),
        }
    }
}

#[derive(Debug)]
struct EncoderLayer {
    attention: Attention,
    mlp: Mlp,
}

impl EncoderLayer {
    fn load(config: &Config, weights: &Weights) -> Loaded<Self> {
        Ok(Self { attention: Attention::load(config, &weights.pp("attention"))?, mlp: Mlp::load(config, weights)? })
    }

    /// `[T, H]` to `[T, H]`.
    fn forward(&self, x: &Tensor, segment_lens: &[usize]) -> Result<Tensor> {
        self.mlp.forward(&self.attention.forward(x, segment_lens)?)
    }
}

/// Tells how well the second text answers the first, from the first row.
#[derive(Debug)]
struct Head {
    dense: Linear,  // [H, H]
    output: Linear, // [1, H]
}

impl Head {
    fn load(names: HeadNames, hidden: usize, weights: &Weights) -> Loaded<Self> {
        Ok(Self {
            dense: Linear::load(&weights.pp(names.dense), hidden, hidden, true)?,
            output: Linear::load(&weights.pp(names.output), 1, hidden, true)?,
        })
    }

    /// `[T, H]` to `[S, 1]`.
    fn forward(&self, x: &Tensor, segment_lens: &[usize]) -> Result<Tensor> {
        let first = Pooling { mode: PoolingMode::Cls, normalise: false }.forward(x, segment_lens)?;
        self.output.forward(&self.dense.forward(&first)?.tanh()?)
    }
}

/// The encoder with its pooling or its head; whole on every rank, as these models are small.
#[derive(Debug)]
pub struct Model {
    embeddings: Embeddings,
    layers: Vec<EncoderLayer>,
    head: Option<Head>,
    config: Config,
    device: Device,
}

impl Model {
    /// The tensors lie at the top, or under the family's prefix where the checkpoint was saved with a head.
    pub fn load(config: &Config, weights: &Weights) -> Loaded<Self> {
        let below = weights.pp(config.prefix);
        let encoder = if below.contains("embeddings.word_embeddings.weight") { below } else { weights.clone() };
        let layers = encoder.pp("encoder.layer");
        Ok(Self {
            embeddings: Embeddings::load(config, &encoder.pp("embeddings"))?,
            layers: (0..config.layers).map(|i| EncoderLayer::load(config, &layers.pp(i))).collect::<Loaded<_>>()?,
            head: config.head.map(|names| Head::load(names, config.hidden_size, weights)).transpose()?,
            config: config.clone(),
            device: weights.device().clone(),
        })
    }

    /// The last layer's rows, `[T, H]`.
    fn forward(&self, ids: &Tensor, types: &Tensor, segment_lens: &[usize]) -> Result<Tensor> {
        let first = self.config.first_position as u32;
        let positions: Vec<u32> = segment_lens.iter().flat_map(|len| first..first + *len as u32).collect();
        let positions = Tensor::new(positions, &self.device)?;
        // A single type is every token's, whatever the tokenizer says of the second text.
        let types = if self.config.token_types == 1 { &types.zeros_like()? } else { types };
        let embedded = self.embeddings.forward(ids, types, &positions)?;
        self.layers.iter().try_fold(embedded, |x, layer| layer.forward(&x, segment_lens))
    }
}

impl Encoder for Model {
    fn encode(&self, ids: &Tensor, types: &Tensor, segment_lens: &[usize]) -> Result<Tensor> {
        let context = self.config.context();
        if let Some(len) = segment_lens.iter().find(|len| **len == 0 || **len > context) {
            candle_core::bail!("a text of {len} tokens; this model takes 1 to {context}");
        }
        let x = self.forward(ids, types, segment_lens)?;
        match &self.head {
            Some(head) => head.forward(&x, segment_lens)?.to_dtype(DType::F32),
            None => self.config.pooling.forward(&x.to_dtype(DType::F32)?, segment_lens),
        }
    }
}
