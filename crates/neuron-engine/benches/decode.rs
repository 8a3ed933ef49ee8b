//! Decoding on the CPU beside candle-transformers' own qwen3 on the same weights, and many streams beside one; both in one run.
//!
//! `cargo bench -p neuron-engine --bench decode [-- --json FILE]`

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::qwen3;
use cortex_core::{GenerateEvent, GenerateRequest, Prompt, SamplingRequest};
use futures::StreamExt;
use futures::future::join_all;
use neuron_engine::{DeviceSet, EngineLimits, LoadOptions, LoadedModel, load};
use serde_json::{Value, json};

const PROMPT_LEN: usize = 32;
const ROUNDS: usize = 7;
const SEED: u64 = 20251015;

/// A checkpoint that both can run.
struct Subject {
    name: &'static str,
    folder: PathBuf,
    tokens: usize,
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let scratch = tempfile::tempdir()?;
    let subjects = [
        Subject { name: "demo's language half, 3.8 M", folder: demo_as_qwen3(&scratch.path().join("demo"))?, tokens: 200 },
        Subject { name: "random, 160 M, bf16", folder: random(&scratch.path().join("random"))?, tokens: 24 },
    ];
    let mut rows = Vec::new();
    println!("{:<30} {:>12} {:>12} {:>8}   {:>12} {:>8}", "one stream, tok/s", "candle f32", "ours", "ratio", "16 streams", "ratio");
    for subject in &subjects {
        let row = runtime.block_on(measure(subject))?;
        println!(
            "{:<30} {:>12.1} {:>12.1} {:>8.2}   {:>12.1} {:>8.2}",
            subject.name,
            row.candle,
            row.one,
            row.one / row.candle,
            row.sixteen,
            row.sixteen / row.one
        );
        rows.push(json!({ "model": subject.name, "candle_transformers_tok_s": row.candle, "ours_tok_s": row.one, "ours_16_streams_tok_s": row.sixteen }));
    }
    save(&rows)
}

fn save(rows: &[Value]) -> anyhow::Result<()> {
    let mut args = std::env::args();
    if args.by_ref().any(|arg| arg == "--json") {
        let file = args.next().context("--json needs a file")?;
        let cores = std::thread::available_parallelism()?.get();
        let run = json!({ "bench": "decode", "cores": cores, "prompt_tokens": PROMPT_LEN, "rounds": ROUNDS, "seed": SEED, "rows": rows });
        fs::write(file, serde_json::to_string_pretty(&run)? + "\n")?;
    }
    Ok(())
}

/// Medians in tokens per second.
struct Row {
    candle: f64,
    one: f64,
    sixteen: f64,
}

/// The three are timed in turn, so that a change of the machine's speed meets all of them.
async fn measure(subject: &Subject) -> anyhow::Result<Row> {
    let limits = EngineLimits { prefix_cache: false, ..Default::default() };
    let devices = DeviceSet::cpu(1)?;
    let model = load(
        &devices,
        "bench".into(),
        subject.folder.clone(),
        LoadOptions { limits, context: Some(512), parallel: 16, ..Default::default() },
    )
    .await?;
    let mut peer = Peer::load(&subject.folder)?;
    let (mut candle, mut one, mut sixteen) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let times = [peer.run(subject.tokens)?, streams(&model, 1, subject.tokens).await?, streams(&model, 16, subject.tokens).await?];
        // The first round warms up.
        if round > 0 {
            candle.push(times[0]);
            one.push(times[1]);
            sixteen.push(times[2]);
        }
    }
    Ok(Row { candle: median(candle), one: median(one), sixteen: median(sixteen) })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn prompt(stream: usize) -> Vec<u32> {
    (0..PROMPT_LEN).map(|i| ((stream * 37 + i * 11) % 1000) as u32).collect()
}

/// Tokens per second of `count` streams together, prompts included.
async fn streams(model: &LoadedModel, count: usize, tokens: usize) -> anyhow::Result<f64> {
    let request = |stream| GenerateRequest {
        model: "bench".into(),
        request_id: "bench".into(),
        prompt: Prompt::Tokens(prompt(stream)),
        sampling: SamplingRequest { temperature: Some(0.0), ignore_eos: true, ..Default::default() },
        stop: vec![],
        max_tokens: Some(tokens as u32),
        logprobs: None,
        prompt_logprobs: false,
    };
    let started = Instant::now();
    let counts = join_all((0..count).map(|stream| drain(model, request(stream)))).await;
    let generated = counts.into_iter().sum::<anyhow::Result<u32>>()?;
    Ok(f64::from(generated) / started.elapsed().as_secs_f64())
}

async fn drain(model: &LoadedModel, request: GenerateRequest) -> anyhow::Result<u32> {
    let mut events = model.generate(request, vec![]).await?;
    while let Some(event) = events.next().await {
        if let GenerateEvent::Finish { usage, .. } = event? {
            return Ok(usage.completion_tokens);
        }
    }
    anyhow::bail!("the stream ended early")
}

/// candle-transformers' model, greedy, as its example runs it.
struct Peer {
    model: qwen3::ModelForCausalLM,
}

impl Peer {
    fn load(folder: &Path) -> anyhow::Result<Self> {
        let config: qwen3::Config = serde_json::from_str(&fs::read_to_string(folder.join("config.json"))?)?;
        let tensors = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu)?;
        Ok(Self { model: qwen3::ModelForCausalLM::new(&config, VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu))? })
    }

    fn run(&mut self, tokens: usize) -> anyhow::Result<f64> {
        let started = Instant::now();
        self.model.clear_kv_cache();
        let mut next = prompt(0);
        let mut offset = 0;
        for _ in 0..tokens {
            let input = Tensor::new(next.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
            let logits = self.model.forward(&input, offset)?.flatten_all()?;
            offset += next.len();
            next = vec![logits.argmax(0)?.to_scalar::<u32>()?];
        }
        Ok(tokens as f64 / started.elapsed().as_secs_f64())
    }
}

/// On text, the demo model's language half is a Qwen3: its three position rows are equal.
fn demo_as_qwen3(folder: &Path) -> anyhow::Result<PathBuf> {
    let demo = demo();
    let config: Value = serde_json::from_str(&fs::read_to_string(demo.join("config.json"))?)?;
    let text = &config["text_config"];
    let tensors: HashMap<String, Tensor> = candle_core::safetensors::load(demo.join("model.safetensors"), &Device::Cpu)?
        .into_iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("model.language_model.").map(|name| format!("model.{name}"))?, tensor)))
        .collect();
    write(folder, text.clone(), &tensors)
}

/// A Qwen3 shape with random weights, scaled so that logits differ.
fn random(folder: &Path) -> anyhow::Result<PathBuf> {
    let (hidden, inner, layers, heads, kv, dim, vocabulary) = (1024, 3072, 8, 16, 8, 128, 32_768);
    Device::Cpu.set_seed(SEED).ok();
    let mut tensors = HashMap::new();
    let mut add = |name: String, shape: &[usize]| -> anyhow::Result<()> {
        let scale = 1.0 / (shape[shape.len() - 1] as f32).sqrt();
        let tensor = if shape.len() == 1 {
            Tensor::ones(shape, DType::F32, &Device::Cpu)?
        } else {
            Tensor::randn(0f32, scale, shape, &Device::Cpu)?
        };
        tensors.insert(name, tensor.to_dtype(DType::BF16)?);
        Ok(())
    };
    add("model.embed_tokens.weight".into(), &[vocabulary, hidden])?;
    add("model.norm.weight".into(), &[hidden])?;
    for layer in 0..layers {
        let at = |name: &str| format!("model.layers.{layer}.{name}.weight");
        for (name, rows, columns) in [
            ("self_attn.q_proj", heads * dim, hidden),
            ("self_attn.k_proj", kv * dim, hidden),
            ("self_attn.v_proj", kv * dim, hidden),
            ("self_attn.o_proj", hidden, heads * dim),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ] {
            add(at(name), &[rows, columns])?;
        }
        for (name, len) in
            [("input_layernorm", hidden), ("post_attention_layernorm", hidden), ("self_attn.q_norm", dim), ("self_attn.k_norm", dim)]
        {
            add(at(name), &[len])?;
        }
    }
    let config = json!({
        "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, "head_dim": dim, "max_position_embeddings": 4096, "tie_word_embeddings": true, "rope_theta": 1e6,
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "attention_bias": false,
    });
    write(folder, config, &tensors)
}

fn write(folder: &Path, mut config: Value, tensors: &HashMap<String, Tensor>) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    config["architectures"] = json!(["Qwen3ForCausalLM"]);
    config["model_type"] = json!("qwen3");
    config["rope_scaling"] = Value::Null;
    config["sliding_window"] = Value::Null;
    config["use_sliding_window"] = json!(false);
    config["max_window_layers"] = config["num_hidden_layers"].clone();
    fs::write(folder.join("config.json"), config.to_string())?;
    candle_core::safetensors::save(tensors, folder.join("model.safetensors"))?;
    for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        fs::copy(demo().join(file), folder.join(file))?;
    }
    Ok(folder.to_path_buf())
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/cortex-demo")
}
