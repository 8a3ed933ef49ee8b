//! What came out, as a table and as JSON.

use std::fmt;

use neuron_engine::ModelInfo;
use serde::Serialize;

use super::BenchArgs;
use super::limits::HostLimits;
use super::subject::Subject;

/// A whole run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Of this program.
    pub version: &'static str,
    /// A folder, or a shape.
    pub model: String,
    /// Where it ran.
    pub devices: Vec<String>,
    /// Processors of the host.
    pub cores: usize,
    /// Of the model.
    pub parameters: u64,
    /// On the devices.
    pub weight_bytes: u64,
    /// On the devices.
    pub kv_bytes: u64,
    /// Each figure is the median of this many.
    pub rounds: usize,
    /// Of prompts and made-up weights.
    pub seed: u64,
    /// Bytes per second of a large copy on the device, reads and writes together.
    pub copy_bytes_per_s: f64,
    /// Operations per second of a large matrix product on the device.
    pub matmul_flop_per_s: f64,
    /// Bytes per second of reading the weight files from memory.
    pub read_bytes_per_s: Option<f64>,
    /// In the order in which they were measured.
    pub figures: Vec<Figure>,
    /// What was asked for and not measured, and why.
    pub skipped: Vec<String>,
}

/// One number.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// `decode`, `prefill`, `serve`, `first token`, `load`, `swap`.
    pub what: &'static str,
    /// Streams at the same time.
    pub streams: usize,
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// The median.
    pub value: f64,
    /// `tok/s`, of which more is better, or `s`, of which less is.
    pub unit: &'static str,
    /// What it could be at best, by what was measured in this run.
    pub limit: Option<f64>,
    /// How much of that it is; 1 is all.
    pub share: Option<f64>,
}

impl Figure {
    pub(super) fn rate(what: &'static str, streams: usize, prompt_tokens: usize, value: f64, limit: Option<f64>) -> Self {
        Self { what, streams, prompt_tokens, value, unit: "tok/s", limit, share: limit.map(|limit| value / limit) }
    }

    pub(super) fn time(what: &'static str, streams: usize, prompt_tokens: usize, value: f64, limit: Option<f64>) -> Self {
        Self { what, streams, prompt_tokens, value, unit: "s", limit, share: limit.map(|limit| limit / value) }
    }
}

impl Report {
    pub(super) fn new(args: &BenchArgs, subject: &Subject, limits: &HostLimits) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            model: subject.name.clone(),
            devices: Vec::new(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            parameters: 0,
            weight_bytes: 0,
            kv_bytes: 0,
            rounds: args.rounds,
            seed: args.seed,
            copy_bytes_per_s: limits.device.copy_bytes_per_s,
            matmul_flop_per_s: limits.device.matmul_flop_per_s,
            read_bytes_per_s: limits.read_bytes_per_s,
            figures: Vec::new(),
            skipped: Vec::new(),
        }
    }

    pub(super) fn describe(&mut self, info: &ModelInfo) {
        self.devices.clone_from(&info.devices);
        self.parameters = info.parameters;
        self.weight_bytes = info.weight_bytes;
        self.kv_bytes = info.kv_bytes;
    }

    pub(super) fn push(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    pub(super) fn skip(&mut self, why: impl Into<String>) {
        self.skipped.push(why.into());
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gb = |bytes: f64| bytes / 1e9;
        writeln!(f, "{} on {}, {} cores", self.model, self.devices.join(", "), self.cores)?;
        writeln!(f, "weights {:.2} GB, KV cache {:.2} GB", gb(self.weight_bytes as f64), gb(self.kv_bytes as f64))?;
        write!(f, "limits: copy {:.1} GB/s, matrix product {:.1} GFLOP/s", gb(self.copy_bytes_per_s), gb(self.matmul_flop_per_s))?;
        match self.read_bytes_per_s {
            Some(rate) => writeln!(f, ", reading the files {:.1} GB/s", gb(rate))?,
            None => writeln!(f)?,
        }
        writeln!(f, "medians of {}, seed {}\n", self.rounds, self.seed)?;
        writeln!(f, "{:<12} {:>8} {:>8} {:>12} {:<6} {:>12} {:>6}", "", "streams", "prompt", "", "", "limit", "share")?;
        for figure in &self.figures {
            let Figure { what, streams, prompt_tokens, value, unit, limit, share } = figure;
            let limit = limit.map_or("-".into(), |limit| number(limit, unit));
            let share = share.map_or("-".into(), |share| format!("{share:.2}"));
            writeln!(f, "{what:<12} {streams:>8} {prompt_tokens:>8} {:>12} {unit:<6} {limit:>12} {share:>6}", number(*value, unit))?;
        }
        self.skipped.iter().try_for_each(|why| writeln!(f, "skipped {why}"))
    }
}

/// Seconds need their milliseconds; rates do not need their tenths.
fn number(value: f64, unit: &str) -> String {
    match unit {
        "s" => format!("{value:.4}"),
        _ if value < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
