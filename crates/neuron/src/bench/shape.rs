//! Shapes of known models, for measurements without their weights.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde_json::{Value, json};

/// A dense Qwen3 by its sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// What it is called on the command line.
    pub name: &'static str,
    hidden: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocabulary: usize,
    tied: bool,
}

const QWEN3: Shape =
    Shape { name: "", hidden: 0, inner: 0, layers: 0, heads: 0, kv_heads: 8, head_dim: 128, vocabulary: 151_936, tied: false };

/// `tiny` runs anywhere in seconds; `small` is large enough for a processor's memory to matter.
const SHAPES: [Shape; 5] = [
    Shape { name: "tiny", hidden: 256, inner: 768, layers: 4, heads: 4, kv_heads: 2, head_dim: 64, vocabulary: 4096, tied: true },
    Shape { name: "small", hidden: 1024, inner: 3072, layers: 8, heads: 16, vocabulary: 32_768, tied: true, ..QWEN3 },
    Shape { name: "qwen3-0.6b", hidden: 1024, inner: 3072, layers: 28, heads: 16, tied: true, ..QWEN3 },
    Shape { name: "qwen3-8b", hidden: 4096, inner: 12_288, layers: 36, heads: 32, ..QWEN3 },
    Shape { name: "qwen3-32b", hidden: 5120, inner: 25_600, layers: 64, heads: 64, ..QWEN3 },
];

impl FromStr for Shape {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = || SHAPES.map(|shape| shape.name).join(", ");
        SHAPES.into_iter().find(|shape| shape.name == name).ok_or_else(|| format!("there is no shape `{name}`; there are {}", known()))
    }
}

impl Shape {
    /// Its `config.json`.
    pub fn config(&self) -> Value {
        json!({
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": self.vocabulary, "hidden_size": self.hidden,
            "intermediate_size": self.inner, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim, "max_position_embeddings": 40_960,
            "tie_word_embeddings": self.tied, "rope_theta": 1e6, "rope_scaling": null, "rms_norm_eps": 1e-6, "hidden_act": "silu",
            "attention_bias": false, "sliding_window": null, "use_sliding_window": false, "max_window_layers": self.layers,
            "torch_dtype": "bfloat16",
        })
    }

    /// Its tensors, as a checkpoint names them.
    pub fn tensors(&self) -> BTreeMap<String, Vec<usize>> {
        let Self { hidden, inner, heads, kv_heads, head_dim, vocabulary, .. } = *self;
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        let mut tensors =
            BTreeMap::from([("model.embed_tokens.weight".into(), vec![vocabulary, hidden]), ("model.norm.weight".into(), vec![hidden])]);
        if !self.tied {
            tensors.insert("lm_head.weight".into(), vec![vocabulary, hidden]);
        }
        let layer: [(&str, Vec<usize>); 11] = [
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![queries, hidden]),
            ("self_attn.k_proj", vec![keys, hidden]),
            ("self_attn.v_proj", vec![keys, hidden]),
            ("self_attn.q_norm", vec![head_dim]),
            ("self_attn.k_norm", vec![head_dim]),
            ("self_attn.o_proj", vec![hidden, queries]),
            ("post_attention_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ];
        for at in 0..self.layers {
            tensors.extend(layer.iter().map(|(name, shape)| (format!("model.layers.{at}.{name}.weight"), shape.clone())));
        }
        tensors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_as_many_parameters_as_their_models() {
        for (name, millions) in [("qwen3-0.6b", 596), ("qwen3-8b", 8190), ("qwen3-32b", 32_762)] {
            let shape: Shape = name.parse().unwrap();
            let parameters: usize = shape.tensors().values().map(|shape| shape.iter().product::<usize>()).sum();
            assert_eq!(parameters / 1_000_000, millions, "{name}");
        }
        assert!("qwen".parse::<Shape>().unwrap_err().contains("qwen3-8b"));
    }
}
