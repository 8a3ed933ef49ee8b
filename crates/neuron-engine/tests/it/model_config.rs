//! `config.json`: what is understood, and how a field at fault is named.

use std::fs;

use neuron_engine::error::LoadError;
use neuron_engine::layers::rotary::RopeScaling;
use neuron_engine::models::config::{ModelConfig, Network};
use neuron_engine::models::decoder::{self, MlpConfig};
use neuron_engine::models::registry::load_config;
use serde_json::{Value, json};

fn load(config: &Value) -> Result<ModelConfig, LoadError> {
    load_text(&config.to_string())
}

fn load_text(config: &str) -> Result<ModelConfig, LoadError> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config).unwrap();
    load_config(folder.path())
}

fn decoder(config: &Value) -> decoder::Config {
    match load(config).unwrap_or_else(|e| panic!("{e}: {config}")).network {
        Network::Decoder(decoder) => decoder,
        Network::Bert(_) => panic!("not a decoder: {config}"),
    }
}

/// `base` with the fields of `change` set, or removed where `change` says null.
fn with(base: &Value, change: &Value) -> Value {
    let mut config = base.clone();
    for (name, value) in change.as_object().unwrap() {
        match value {
            Value::Null => config.as_object_mut().unwrap().remove(name),
            value => config.as_object_mut().unwrap().insert(name.clone(), value.clone()),
        };
    }
    config
}

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
    })
}

fn moe() -> Value {
    let change = json!({
        "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16,
    });
    with(&llama(), &change)
}

fn seeing() -> Value {
    let rope = json!({"mrope_section": [4, 2, 2], "rope_type": "default"});
    let text = with(&llama(), &json!({"head_dim": 16, "architectures": null, "rope_scaling": rope}));
    json!({
        "architectures": ["Qwen3VLForConditionalGeneration"], "text_config": text, "vision_config": {}, "tie_word_embeddings": true,
        "image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93,
    })
}

fn bert() -> Value {
    json!({
        "architectures": ["BertModel"], "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 32,
    })
}

#[test]
fn each_field_at_fault_is_named_with_what_is_wrong() {
    let scaling = |change: Value| json!({"rope_scaling": change});
    let cases: Vec<(Value, &str)> = vec![
        (with(&llama(), &json!({"hidden_size": null})), "`hidden_size` is missing"),
        (with(&llama(), &json!({"hidden_size": "64"})), "`hidden_size` must be an integer from 0, but is \"64\""),
        (with(&llama(), &json!({"hidden_size": 64.5})), "`hidden_size` must be an integer"),
        (with(&llama(), &json!({"hidden_size": -64})), "`hidden_size` must be an integer"),
        (with(&llama(), &json!({"hidden_size": 1u64 << 40})), "`hidden_size` must be an integer"),
        (with(&llama(), &json!({"num_attention_heads": 0})), "`num_attention_heads` must be at least 1"),
        (
            with(&llama(), &json!({"num_attention_heads": 5, "num_key_value_heads": 5})),
            "`hidden_size` must be a multiple of num_attention_heads (5)",
        ),
        (with(&llama(), &json!({"num_key_value_heads": 3})), "`num_attention_heads` must be a multiple of num_key_value_heads (3)"),
        (with(&llama(), &json!({"head_dim": 7})), "`head_dim` must be even"),
        (with(&llama(), &json!({"rms_norm_eps": 0})), "`rms_norm_eps` must be a number above 0"),
        (with(&llama(), &json!({"rms_norm_eps": []})), "`rms_norm_eps` must be a number above 0, but is []"),
        (with(&llama(), &json!({"tie_word_embeddings": "yes"})), "`tie_word_embeddings` must be true or false"),
        (with(&llama(), &json!({"hidden_act": "gelu"})), "`hidden_act` is gelu"),
        (with(&llama(), &json!({"rope_theta": -1})), "`rope_theta` must be a number above 0"),
        (with(&llama(), &scaling(json!([]))), "`rope_scaling` must be an object"),
        (with(&llama(), &scaling(json!({"type": "linear", "factor": 2}))), "`rope_scaling` is of type `linear`"),
        (with(&llama(), &scaling(json!({"rope_type": "yarn", "factor": 4}))), "`rope_scaling` is of type `yarn`"),
        (with(&llama(), &scaling(json!({"rope_type": "dynamic", "factor": 4}))), "`rope_scaling` is of type `dynamic`"),
        (with(&llama(), &json!({"rope_parameters": {"rope_type": "longrope"}})), "`rope_parameters` is of type `longrope`"),
        (
            with(&llama(), &scaling(json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1}))),
            "`rope_scaling.high_freq_factor` is missing",
        ),
        (
            with(&llama(), &scaling(json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}))),
            "`rope_scaling.high_freq_factor` must be above",
        ),
        (with(&llama(), &json!({"partial_rotary_factor": 0.5, "rope_parameters": {}})), "`partial_rotary_factor` is 0.5"),
        (with(&llama(), &json!({"quantization_config": {"quant_method": "gptq"}})), "`quantization_config` is present"),
        (with(&llama(), &json!({"architectures": null})), "`architectures` is missing"),
        (with(&moe(), &json!({"use_sliding_window": true})), "`use_sliding_window` is true"),
        (with(&moe(), &json!({"layer_types": ["full_attention", "sliding_attention"]})), "`use_sliding_window` is true"),
        (with(&moe(), &json!({"num_experts_per_tok": 9})), "`num_experts_per_tok` must be at most num_experts (8)"),
        (with(&moe(), &json!({"moe_intermediate_size": null})), "`moe_intermediate_size` is missing"),
        (with(&moe(), &json!({"mlp_only_layers": [1, "2"]})), "`mlp_only_layers` must be a list of integers"),
        (with(&seeing(), &json!({"text_config": null})), "`text_config` is missing"),
        (with(&seeing(), &json!({"vision_config": null})), "`vision_config` is missing"),
        (with(&seeing(), &json!({"image_token_id": null})), "`image_token_id` is missing"),
        (with(&bert(), &json!({"num_attention_heads": 3})), "`hidden_size` must be a multiple of num_attention_heads (3)"),
        (with(&bert(), &json!({"position_embedding_type": "relative_key"})), "`position_embedding_type` is relative_key"),
        (with(&bert(), &json!({"hidden_act": "relu"})), "`hidden_act` is relu"),
    ];
    for (config, says) in cases {
        let error = load(&config).expect_err(says).to_string();
        assert!(error.contains(says), "expected: {says}\ngot: {error}");
    }
}

#[test]
fn errors_inside_a_section_give_the_whole_path() {
    let text = |change: Value| {
        let text = with(&seeing()["text_config"], &change);
        with(&seeing(), &json!({ "text_config": text }))
    };
    let rope = |change: Value| text(json!({"rope_scaling": change}));
    let cases = [
        (text(json!({"vocab_size": true})), "`text_config.vocab_size` must be an integer from 0, but is true"),
        (rope(json!({"mrope_section": [4, 4]})), "`text_config.rope_scaling.mrope_section` must have three entries, but has 2"),
        (rope(json!({"mrope_section": [4, 4, 4]})), "`text_config.rope_scaling.mrope_section` must add up to half of head_dim (8)"),
        (rope(json!({"mrope_section": [4, 2, 2], "mrope_interleaved": false})), "`text_config.rope_scaling.mrope_interleaved` is false"),
        (rope(json!({"rope_type": "default"})), "`text_config.rope_scaling` must have an mrope_section"),
    ];
    for (config, says) in cases {
        let error = load(&config).expect_err(says).to_string();
        assert!(error.contains(says), "expected: {says}\ngot: {error}");
    }
}

#[test]
fn an_unknown_architecture_lists_the_known_ones() {
    let error = load(&with(&llama(), &json!({"architectures": ["FalconForCausalLM"]}))).unwrap_err().to_string();
    for name in ["FalconForCausalLM", "LlamaForCausalLM", "Qwen3MoeForCausalLM", "Qwen3VLMoeForConditionalGeneration", "BertModel"] {
        assert!(error.contains(name), "{name}: {error}");
    }
}

#[test]
fn a_file_that_is_not_an_object_is_malformed() {
    for text in ["", "{", "[]", "3", "{\"a\":1}x"] {
        let error = load_text(text).expect_err(text).to_string();
        assert!(error.contains("config.json") && error.contains("malformed"), "{text}: {error}");
    }
    let error = load_config(tempfile::tempdir().unwrap().path()).unwrap_err().to_string();
    assert!(error.contains("config.json` is missing"), "{error}");
}

#[test]
fn absent_fields_take_the_values_they_stand_for() {
    let plain = decoder(&with(&llama(), &json!({"num_key_value_heads": null, "rope_theta": null, "rms_norm_eps": null})));
    assert_eq!((plain.heads.kv, plain.heads.dim, plain.rope.theta, plain.rms_norm_eps), (8, 8, 1e4, 1e-6));
    assert_eq!((plain.rope.scaling.clone(), plain.tied, plain.attention_bias, plain.qk_norm), (RopeScaling::None, false, false, false));
    assert!(decoder(&moe()).qk_norm);
    assert!(decoder(&seeing()).tied, "the top level decides where the text section is silent");
}

#[test]
fn experts_are_where_the_configuration_puts_them() {
    let cases = [
        (json!({}), "EEEE"),
        (json!({"mlp_only_layers": [0, 2]}), "dEdE"),
        (json!({"decoder_sparse_step": 2}), "dEdE"),
        (json!({"decoder_sparse_step": 3}), "ddEd"),
        (json!({"decoder_sparse_step": 2, "mlp_only_layers": [3]}), "dEdd"),
        (json!({"num_experts": 0}), "dddd"),
    ];
    for (change, layers) in cases {
        let mlps = decoder(&with(&moe(), &change)).mlps;
        let found: String = mlps.iter().map(|mlp| if matches!(mlp, MlpConfig::Moe(_)) { 'E' } else { 'd' }).collect();
        assert_eq!(found, layers, "{change}");
    }
}

#[test]
fn pooling_that_cannot_be_done_is_refused() {
    let pooling = |mode| json!([{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]).to_string() + "\n" + mode;
    let cases = [
        (
            "[{\"path\": \"2_Dense\", \"type\": \"sentence_transformers.models.Dense\"}]".to_owned(),
            "the module `sentence_transformers.models.Dense`",
        ),
        ("{}".to_owned(), "modules.json` is malformed"),
        (pooling(r#"{"pooling_mode": "lasttoken"}"#), "`pooling_mode` is lasttoken"),
        (pooling(r#"{"pooling_mode_max_tokens": true}"#), "pooling by [\"max_tokens\"]"),
        (pooling(r#"{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}"#), "pooling by [\"mean_tokens\", \"cls_token\"]"),
        (pooling("{}"), "pooling by []"),
    ];
    for (files, says) in cases {
        let folder = tempfile::tempdir().unwrap();
        let (modules, mode) = files.split_once('\n').unwrap_or((&files, "{}"));
        fs::create_dir(folder.path().join("1_Pooling")).unwrap();
        fs::write(folder.path().join("config.json"), bert().to_string()).unwrap();
        fs::write(folder.path().join("modules.json"), modules).unwrap();
        fs::write(folder.path().join("1_Pooling/config.json"), mode).unwrap();
        let error = load_config(folder.path()).expect_err(says).to_string();
        assert!(error.contains(says), "expected: {says}\ngot: {error}");
    }
}
