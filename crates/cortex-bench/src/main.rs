//! `cortex-bench`: measures an OpenAI-compatible server under a seeded workload.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use cortex_bench::run::run;
use cortex_bench::target::Target;
use cortex_bench::workload::Workload;

/// Sends a workload's requests and measures time to first token, time between tokens, throughput and goodput.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The workload: a TOML file; see crates/cortex-bench/workloads
    workload: PathBuf,
    /// The server
    #[arg(long, default_value = "http://127.0.0.1:31313")]
    url: String,
    /// The model to ask
    #[arg(long)]
    model: String,
    /// The API key
    #[arg(long, env = "CORTEX_API_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Give a request up after so many seconds
    #[arg(long, default_value_t = 600)]
    wait_s: u64,
    /// Write the figures as JSON
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let text = std::fs::read_to_string(&args.workload).with_context(|| format!("cannot read {}", args.workload.display()))?;
    let workload = Workload::parse(&text)?;
    let target = Target::new(&args.url, args.key, Duration::from_secs(args.wait_s))?;
    let report = run(&workload, &args.model, &target).await;
    if args.json {
        let told = serde_json::json!({ "workload": workload, "url": args.url, "model": args.model, "report": report });
        println!("{told:#}");
    } else {
        print!("{report}");
    }
    anyhow::ensure!(report.errors.is_empty(), "some requests failed");
    Ok(())
}
