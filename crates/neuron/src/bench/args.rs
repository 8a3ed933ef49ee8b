//! The command line of `neuron bench`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Shape;

/// Measure how fast a model runs on this host.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// Folder of a checkpoint.
    #[arg(value_name = "FOLDER", required_unless_present = "random", conflicts_with = "random")]
    pub folder: Option<PathBuf>,
    /// Measure a shape with made-up weights instead: tiny, small, qwen3-0.6b, qwen3-8b, qwen3-32b.
    #[arg(long, value_name = "SHAPE")]
    pub random: Option<Shape>,
    /// Write the made-up weights to a file first, so that loading can be measured, too. Needs the room on disk.
    #[arg(long)]
    pub store: bool,
    /// Write them into this folder and leave it there, so that a node can serve it.
    #[arg(long, value_name = "FOLDER", conflicts_with = "store")]
    pub keep: Option<PathBuf>,
    /// What to measure; all unless named.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PARTS")]
    pub only: Vec<Part>,
    /// Streams that decode together.
    #[arg(long = "batch", value_delimiter = ',', default_value = "1,8,64,256", value_name = "LIST")]
    pub batches: Vec<usize>,
    /// Prompt tokens in front of what is decoded.
    #[arg(long = "context", value_delimiter = ',', default_value = "128,1984", value_name = "LIST")]
    pub contexts: Vec<usize>,
    /// Lengths of prompts to be read.
    #[arg(long = "prefill", value_delimiter = ',', default_value = "512,2048", value_name = "LIST")]
    pub prefills: Vec<usize>,
    /// Requests that come at once, 128 tokens in and 128 out each.
    #[arg(long, value_delimiter = ',', default_value = "1,4,16,64,256", value_name = "LIST")]
    pub concurrency: Vec<usize>,
    /// Tokens that each stream decodes.
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub tokens: usize,
    /// Each figure is the median of this many.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub rounds: usize,
    /// Tokens of one step, prompts and answers together.
    #[arg(long, default_value_t = 2048, value_name = "N")]
    pub step_tokens: usize,
    /// How weights are held: f32, bf16 or f16; as stored unless named.
    #[arg(long)]
    pub dtype: Option<String>,
    /// Devices to split the model over, the first ones of this host. The limits are then theirs together.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub tensor_parallel: usize,
    /// For prompts and made-up weights.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// One kind of measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Tokens per second by batch and context.
    Decode,
    /// Prompt tokens per second.
    Prefill,
    /// Answer tokens per second of many requests at once.
    Serve,
    /// Seconds to load, and to swap.
    Load,
}

impl Part {
    /// In the order in which they are measured.
    pub const ALL: [Self; 4] = [Self::Decode, Self::Prefill, Self::Serve, Self::Load];
}

impl BenchArgs {
    /// Whether this part is asked for.
    pub fn measures(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}
