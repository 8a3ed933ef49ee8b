//! `neuron bench`: how fast a model runs on this host, each figure beside the limit that the same run measured.
//!
//! Everything is timed at the engine's door: scheduling, sampling and the way back are in the figures, text and HTTP are not.

mod answers;
mod args;
mod limits;
mod report;
mod shape;
mod subject;

use anyhow::{Context, ensure};
use neuron_engine::cache::kv_cache::BLOCK_SIZE;
use neuron_engine::{DeviceSet, EngineLimits, LoadOptions, LoadedModel, load};

pub use args::{BenchArgs, Part};
pub use report::{Figure, Report};
pub use shape::Shape;

use answers::{Workload, median};
use limits::{HostLimits, Work};
use subject::Subject;

/// Prompt and answer of each request in the serve part.
const SERVE_TOKENS: usize = 128;

/// Measures what `args` ask for.
pub async fn run(args: &BenchArgs) -> anyhow::Result<Report> {
    let (devices, _) = DeviceSet::detect(args.tensor_parallel).context("cannot start the device thread")?;
    let report = measure(&devices, args).await;
    devices.shutdown().await;
    report
}

async fn measure(devices: &DeviceSet, args: &BenchArgs) -> anyhow::Result<Report> {
    let subject = Subject::prepare(args)?;
    let limits = HostLimits::measure(devices, args.tensor_parallel, &subject).await?;
    let model = load_model(devices, &subject, args).await?;
    let work = Work::of(&subject.config, &model);
    let mut bench = Bench { args, limits, work, workload: Workload::new(model, &subject), report: Report::new(args, &subject, &limits) };
    bench.report.describe(bench.workload.model().info());
    for part in Part::ALL.into_iter().filter(|part| args.measures(*part)) {
        match part {
            Part::Decode => bench.decode().await?,
            Part::Prefill => bench.prefill().await?,
            Part::Serve => bench.serve().await?,
            Part::Load => bench.load(devices, &subject).await?,
        }
    }
    Ok(bench.report)
}

/// Room for the longest case, and for as many of each as fit. What is longer than the model's own context is skipped later.
async fn load_model(devices: &DeviceSet, subject: &Subject, args: &BenchArgs) -> anyhow::Result<LoadedModel> {
    let decodes = args.contexts.iter().flat_map(|context| args.batches.iter().map(move |batch| (*batch, context + args.tokens)));
    let prefills = args.prefills.iter().map(|prompt| (2 * args.rounds, prompt + 1));
    let serves = args.concurrency.iter().map(|requests| (*requests, 2 * SERVE_TOKENS));
    let possible = |(_, len): &(usize, usize)| *len < subject.config.context_len_max;
    let cases: Vec<_> = decodes.chain(prefills).chain(serves).filter(possible).collect();
    let longest = cases.iter().map(|(_, len)| len + 1).max().context("every case is longer than the model's context")?;
    let most = cases.iter().map(|(streams, len)| needed_tokens(*streams, *len)).max().unwrap_or(1);
    let limits = EngineLimits {
        step_tokens_max: args.step_tokens,
        running_max: cases.iter().map(|(streams, _)| *streams).max().unwrap_or(1),
        ..Default::default()
    };
    let options = LoadOptions {
        dtype: args.dtype.clone(),
        tensor_parallel: args.tensor_parallel,
        context: Some(longest),
        parallel: most.div_ceil(longest),
        limits,
        ..Default::default()
    };
    Ok(load(devices, "bench".into(), subject.folder.clone(), options).await?)
}

/// What so many sequences of this length take of the KV cache at most: the last block of each is full in part.
fn needed_tokens(streams: usize, len: usize) -> usize {
    streams * (len + BLOCK_SIZE)
}

struct Bench<'a> {
    args: &'a BenchArgs,
    limits: HostLimits,
    /// Absent for networks whose limit is not a sum over all weights (mixtures of experts).
    work: Option<Work>,
    workload: Workload,
    report: Report,
}

impl Bench<'_> {
    /// Tokens per second while `batch` streams decode together, their prompts in the cache.
    async fn decode(&mut self) -> anyhow::Result<()> {
        let tokens = self.args.tokens;
        for &context in &self.args.contexts {
            for &batch in &self.args.batches {
                if !self.fits("decode", batch, context + tokens) {
                    continue;
                }
                let prompts = self.workload.fresh_prompts(batch, context);
                // Whole blocks of the prompts are found again in the rounds, so that all streams start within a step or two.
                self.workload.together(&prompts, 1).await?;
                let mut rates = Vec::new();
                for _ in 0..self.args.rounds {
                    let answers = self.workload.together(&prompts, tokens).await?;
                    rates.push(answers::shared_rate(&answers).context("the streams did not overlap; ask for more --tokens")?);
                }
                let middle = context as f64 + tokens as f64 / 2.0;
                let limit = self.work.map(|work| batch as f64 / work.decode_s(&self.limits.device, batch as f64, middle));
                self.report.push(Figure::rate("decode", batch, context, median(rates), limit));
            }
        }
        Ok(())
    }

    /// Prompt tokens per second of one prompt that nobody has seen, up to its first token.
    async fn prefill(&mut self) -> anyhow::Result<()> {
        for &prompt in &self.args.prefills {
            if !self.fits("prefill", 1, prompt + 1) {
                continue;
            }
            let mut rates = Vec::new();
            // The first round warms up.
            for round in 0..=self.args.rounds {
                let answers = self.workload.together(&self.workload.fresh_prompts(1, prompt), 1).await?;
                if round > 0 {
                    rates.push(prompt as f64 / answers[0].first_s());
                }
            }
            let limit = self.work.map(|work| prompt as f64 / work.prefill_s(&self.limits.device, 1.0, prompt as f64));
            self.report.push(Figure::rate("prefill", 1, prompt, median(rates), limit));
        }
        Ok(())
    }

    /// Answer tokens per second of requests that come all at once.
    async fn serve(&mut self) -> anyhow::Result<()> {
        for &requests in &self.args.concurrency {
            if !self.fits("serve", requests, 2 * SERVE_TOKENS) {
                continue;
            }
            let (mut rates, mut firsts) = (Vec::new(), Vec::new());
            for _ in 0..self.args.rounds {
                let prompts = self.workload.fresh_prompts(requests, SERVE_TOKENS);
                let answers = self.workload.together(&prompts, SERVE_TOKENS).await?;
                rates.push(answers::total_rate(&answers).context("nothing was answered")?);
                firsts.push(median(answers.iter().map(answers::Answer::first_s).collect()));
            }
            let limit = self.work.map(|work| work.serve_rate(&self.limits.device, requests as f64, SERVE_TOKENS as f64));
            self.report.push(Figure::rate("serve", requests, SERVE_TOKENS, median(rates), limit));
            self.report.push(Figure::time("first token", requests, SERVE_TOKENS, median(firsts), None));
        }
        Ok(())
    }

    /// Seconds from nothing to the first token, and the same with another model to be put away first.
    async fn load(&mut self, devices: &DeviceSet, subject: &Subject) -> anyhow::Result<()> {
        let Some(bytes) = subject.weights_bytes else {
            self.report.skip("load: the weights are made up in memory; --store or --keep writes them to a file first");
            return Ok(());
        };
        let limit = self.limits.read_bytes_per_s.map(|rate| bytes as f64 / rate);
        let (mut loads, mut swaps) = (Vec::new(), Vec::new());
        for _ in 0..self.args.rounds {
            let started = std::time::Instant::now();
            self.workload.model().unload(std::time::Duration::ZERO).await;
            let unloaded = std::time::Instant::now();
            let model = load_model(devices, subject, self.args).await?;
            self.workload.replace(model);
            self.workload.together(&self.workload.fresh_prompts(1, 16), 1).await?;
            loads.push(unloaded.elapsed().as_secs_f64());
            swaps.push(started.elapsed().as_secs_f64());
        }
        self.report.push(Figure::time("load", 1, 16, median(loads), limit));
        self.report.push(Figure::time("swap", 1, 16, median(swaps), limit));
        Ok(())
    }

    /// Whether so many sequences of this length have room together; if not, the report says so.
    fn fits(&mut self, part: &str, streams: usize, len: usize) -> bool {
        let (room, context) = (self.workload.room_tokens(), self.workload.model().info().context);
        let needed = needed_tokens(streams, len);
        let fits = needed <= room && len <= context;
        if !fits {
            let why = format!("{part}: {streams} x {len} tokens need a cache of {needed}; there is room for {room}, {context} each");
            self.report.skip(why);
        }
        fits
    }
}

impl BenchArgs {
    /// Says what cannot be measured before anything is loaded.
    pub fn check(&self) -> anyhow::Result<()> {
        let counts = [&self.batches, &self.contexts, &self.prefills, &self.concurrency];
        ensure!(counts.iter().all(|counts| counts.iter().all(|count| *count > 0)), "every count must be 1 or more");
        ensure!(self.rounds > 0 && self.tokens > 1 && self.step_tokens > 0, "--rounds and --step-tokens must be 1 or more, --tokens 2");
        let writes = self.store || self.keep.is_some();
        ensure!(!writes || self.random.is_some(), "--store and --keep write made-up weights: name a shape with --random");
        Ok(())
    }
}
