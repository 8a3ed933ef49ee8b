//! One stream on a GPU beside candle-transformers' own qwen3 on the same made-up weights, in turn in one run.
//!
//! `cargo bench -p neuron --features cuda --bench beside -- SHAPE [--json FILE]`, the shapes being those of `neuron bench --random`.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::qwen3;
use cortex_core::{GenerateRequest, Prompt, SamplingRequest};
use neuron::bench::Shape;
use neuron_engine::generation::TokenEvent;
use neuron_engine::weights::random::RandomCheckpoint;
use neuron_engine::weights::{Precision, Weights};
use neuron_engine::{DeviceSet, EngineLimits, LoadOptions, LoadedModel, load, split_mix};
use serde_json::{Value, json};

const ROUNDS: usize = 5;
const SEED: u64 = 1;
const TOKENIZER: &[u8] = include_bytes!("../../../models/cortex-demo/tokenizer.json");
/// Prompt tokens in front of what is decoded.
const CONTEXTS: [usize; 2] = [128, 1984];
const DECODED: usize = 64;
const PREFILLS: [usize; 2] = [512, 2048];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // `cargo bench` adds a flag of its own.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let (shape, file) = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [shape] => (shape, None),
        [shape, "--json", file] => (shape, Some(file)),
        _ => bail!("name a shape, and perhaps --json FILE"),
    };
    let shape: Shape = shape.parse().map_err(anyhow::Error::msg)?;
    let scratch = tempfile::tempdir()?;
    let prompts = Prompts { vocabulary: describe(&shape, scratch.path())?, next: 0 };
    let rows = measure(scratch.path(), prompts).await?;
    println!("{:<8} {:>8} {:>22} {:>12} {:>8}", shape.name, "prompt", "candle-transformers", "ours", "ratio");
    for row in &rows {
        println!("{:<8} {:>8} {:>16.1} tok/s {:>6.1} tok/s {:>8.2}", row.part, row.prompt, row.candle, row.ours, row.ours / row.candle);
    }
    if let Some(file) = file {
        let row = |row: &Row| json!({ "part": row.part, "prompt_tokens": row.prompt, "candle_transformers_tok_s": row.candle, "ours_tok_s": row.ours });
        let rows: Vec<Value> = rows.iter().map(row).collect();
        let run = json!({ "bench": "beside", "shape": shape.name, "dtype": "bf16", "rounds": ROUNDS, "seed": SEED, "decoded_tokens": DECODED, "rows": rows });
        fs::write(file, serde_json::to_string_pretty(&run)? + "\n")?;
    }
    Ok(())
}

/// Medians in tokens per second.
struct Row {
    part: &'static str,
    prompt: usize,
    candle: f64,
    ours: f64,
}

/// Prompts that were never asked before.
struct Prompts {
    vocabulary: u64,
    next: u64,
}

impl Prompts {
    fn fresh(&mut self, len: usize) -> Vec<u32> {
        self.next += 1;
        (0..len).map(|at| (split_mix::bits(SEED.wrapping_add(self.next), at as u64) % self.vocabulary) as u32).collect()
    }
}

/// The checkpoint as a description of made-up weights; answers how many tokens it knows.
fn describe(shape: &Shape, folder: &Path) -> anyhow::Result<u64> {
    let config = shape.config();
    fs::write(folder.join("config.json"), config.to_string())?;
    // Prompts are token ids, so that any tokenizer does.
    fs::write(folder.join("tokenizer.json"), TOKENIZER)?;
    RandomCheckpoint { seed: SEED, tensors: shape.tensors() }.describe(folder)?;
    config["vocab_size"].as_u64().context("a shape has a vocabulary")
}

async fn measure(folder: &Path, mut prompts: Prompts) -> anyhow::Result<Vec<Row>> {
    let (devices, why_not) = DeviceSet::detect(1)?;
    if let Some(why_not) = why_not {
        bail!("this compares two programs on a GPU: {why_not}");
    }
    let context = CONTEXTS.into_iter().chain(PREFILLS).max().unwrap_or(0) + DECODED + 1;
    let limits = EngineLimits { prefix_cache: false, step_tokens_max: 2048, ..Default::default() };
    let options = LoadOptions { dtype: Some("bf16".into()), limits, context: Some(context), parallel: 1, ..Default::default() };
    let ours = load(&devices, "bench".into(), folder.to_owned(), options).await?;
    let mut candle = Candle::load(folder)?;
    let mut rows = Vec::new();
    for prompt in CONTEXTS {
        let (mut candles, mut our) = (Vec::new(), Vec::new());
        // The first round warms up.
        for round in 0..=ROUNDS {
            let prompt = prompts.fresh(prompt);
            let times = [candle.run(&prompt, DECODED + 1)?.decode, run(&ours, &prompt, DECODED + 1).await?.decode];
            if round > 0 {
                candles.push(times[0]);
                our.push(times[1]);
            }
        }
        rows.push(Row { part: "decode", prompt, candle: median(candles), ours: median(our) });
    }
    for prompt in PREFILLS {
        let (mut candles, mut our) = (Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let prompt = prompts.fresh(prompt);
            let times = [candle.run(&prompt, 1)?.prefill, run(&ours, &prompt, 1).await?.prefill];
            if round > 0 {
                candles.push(times[0]);
                our.push(times[1]);
            }
        }
        rows.push(Row { part: "prefill", prompt, candle: median(candles), ours: median(our) });
    }
    Ok(rows)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Tokens per second of one run.
struct Rates {
    /// Of the prompt, up to the first token.
    prefill: f64,
    /// Of the tokens behind the first.
    decode: f64,
}

impl Rates {
    fn of(prompt: &[u32], started: Instant, tokens: &[Instant]) -> anyhow::Result<Self> {
        let [first, .., last] = tokens else {
            let [only] = tokens else { bail!("no token came") };
            return Ok(Self { prefill: prompt.len() as f64 / only.duration_since(started).as_secs_f64(), decode: f64::NAN });
        };
        let decode = (tokens.len() - 1) as f64 / last.duration_since(*first).as_secs_f64();
        Ok(Self { prefill: prompt.len() as f64 / first.duration_since(started).as_secs_f64(), decode })
    }
}

/// Greedily, whatever is drawn.
async fn run(model: &LoadedModel, prompt: &[u32], count: usize) -> anyhow::Result<Rates> {
    let request = GenerateRequest {
        model: "bench".into(),
        request_id: "bench".into(),
        prompt: Prompt::Tokens(prompt.to_vec()),
        sampling: SamplingRequest { temperature: Some(0.0), repetition_penalty: Some(1.0), ignore_eos: true, ..Default::default() },
        stop: vec![],
        max_tokens: Some(count as u32),
        logprobs: None,
        prompt_logprobs: false,
    };
    let started = Instant::now();
    let mut events = model.tokens(&request).await?;
    let mut tokens = Vec::with_capacity(count);
    while let Some(event) = events.recv().await {
        match event {
            TokenEvent::Token(_) => tokens.push(Instant::now()),
            TokenEvent::Failed(error) => return Err(error.into()),
            TokenEvent::Started { .. } | TokenEvent::Finish { .. } => {}
        }
    }
    ensure!(tokens.len() == count, "{} of {count} tokens came", tokens.len());
    Rates::of(prompt, started, &tokens)
}

/// candle-transformers' model, greedy, as its example runs it.
struct Candle {
    model: qwen3::ModelForCausalLM,
    device: Device,
}

impl Candle {
    fn load(folder: &Path) -> anyhow::Result<Self> {
        let device = Device::new_cuda_with_stream(0)?;
        let precision = Precision { matrices: Some(DType::BF16), activations: DType::BF16 };
        let weights = Weights::open(folder, &device, precision)?;
        let shapes = RandomCheckpoint::read(folder)?.tensors;
        let tensors = shapes.iter().map(|(name, shape)| Ok((name.clone(), weights.get(shape, name)?)));
        let tensors = tensors.collect::<anyhow::Result<HashMap<String, Tensor>>>()?;
        let config: qwen3::Config = serde_json::from_str(&fs::read_to_string(folder.join("config.json"))?)?;
        let model = qwen3::ModelForCausalLM::new(&config, VarBuilder::from_tensors(tensors, DType::BF16, &device))?;
        Ok(Self { model, device })
    }

    fn run(&mut self, prompt: &[u32], count: usize) -> anyhow::Result<Rates> {
        self.model.clear_kv_cache();
        self.device.synchronize()?;
        let started = Instant::now();
        let (mut next, mut offset, mut tokens) = (prompt.to_vec(), 0, Vec::with_capacity(count));
        for _ in 0..count {
            let input = Tensor::new(next.as_slice(), &self.device)?.unsqueeze(0)?;
            let logits = self.model.forward(&input, offset)?.flatten_all()?;
            offset += next.len();
            next = vec![logits.argmax(0)?.to_scalar::<u32>()?];
            tokens.push(Instant::now());
        }
        Rates::of(prompt, started, &tokens)
    }
}
