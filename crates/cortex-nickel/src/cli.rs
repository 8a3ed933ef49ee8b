//! The command line.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use cortex_core::{FleetReport, NodeId};
use cortex_placement::{Declared, Outcome, Placement, Problem, Simulation, check, gib, simulate};
use rustix::time::{ClockId, clock_gettime};

use crate::diagnostic::{Diagnostic, Form, Span, render};
use crate::nickel::{CONTRACTS, Evaluated, Request};
use crate::source::Marks;
use crate::{checkpoint, child, config, duplicate, fields, plan};

/// Checks models.ncl, proves that it can work, and renders it for gateways and nodes.
#[derive(Debug, Parser)]
#[command(name = "cortex-placement", bin_name = "cortex placement", version, arg_required_else_help = true, after_help = EXIT_STATUS)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_STATUS: &str = "Exit status: 0 well; 1 the placement cannot work, or something failed; 2 wrong usage.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Say whether the placement can work, and where everything goes
    Check(FileArgs),
    /// Write the placement as JSON, for `cortex serve --placement` and for neurons
    Render {
        #[command(flatten)]
        file: FileArgs,
        /// Write only what this host may load and loads at start
        #[arg(long, value_name = "NAME")]
        host: Option<NodeId>,
    },
    /// Show what a running fleet would load and unload to become what the file says
    Plan {
        #[command(flatten)]
        file: FileArgs,
        /// The gateway's answer to GET /admin/fleet; `-` for standard input
        #[arg(long, value_name = "FILE")]
        fleet: PathBuf,
    },
    /// Show where a model goes, and why
    Explain {
        /// The model, or an alias of it
        model: String,
        #[command(flatten)]
        file: FileArgs,
        /// The gateway's answer to GET /admin/fleet, for what nodes measured; `-` for standard input
        #[arg(long, value_name = "FILE")]
        fleet: Option<PathBuf>,
    },
    /// Run the same decisions over mock nodes in virtual time, and say how it went
    Simulate {
        /// How many nodes
        #[arg(long, default_value_t = 1000)]
        nodes: usize,
        /// Draws demand and faults
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Run this many seeds, one after the other
        #[arg(long, default_value_t = 1)]
        seeds: u64,
        /// Let nodes go away and loads fail
        #[arg(long)]
        faults: bool,
        /// Write a JSON list with one record a seed
        #[arg(long)]
        json: bool,
    },
    /// Write the contracts, for the Nickel language server: cortex placement contract > cortex.ncl
    Contract,
    #[command(name = child::SUBCOMMAND, hide = true)]
    Evaluate {
        file: PathBuf,
        #[arg(long)]
        hosts: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct FileArgs {
    /// The placement
    #[arg(default_value = "models.ncl")]
    file: PathBuf,
    /// Facts about the hosts (JSON or Nickel), instead of what the file says
    #[arg(long, value_name = "FILE")]
    hosts: Option<PathBuf>,
    /// Prove that everything has a place with any one host gone
    #[arg(long, value_name = "HOSTS", value_parser = clap::value_parser!(u8).range(0..=1), default_value = "0")]
    survive: u8,
    /// How mistakes are written
    #[arg(long, value_enum, default_value = "auto")]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Coloured on a terminal, plain elsewhere
    Auto,
    Plain,
    Coloured,
    Json,
}

impl From<Format> for Form {
    fn from(format: Format) -> Self {
        match format {
            Format::Auto if config::colour() => Self::Coloured,
            Format::Auto | Format::Plain => Self::Plain,
            Format::Coloured => Self::Coloured,
            Format::Json => Self::Json,
        }
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let (form, outcome) = match Cli::parse().command {
        Command::Evaluate { file, hosts } => return child::main(file, hosts),
        Command::Contract => (Form::Plain, Ok(CONTRACTS.to_owned())),
        Command::Simulate { nodes, seed, seeds, faults, json } => (
            Form::Plain,
            simulated(nodes, seed..seed.saturating_add(seeds), faults).map(|runs| if json { listed(&runs) } else { table(&runs) }),
        ),
        Command::Check(file) => (file.format.into(), prove(&file).map(|placement| summary(&file.file, &placement))),
        Command::Render { file, host } => (file.format.into(), prove(&file).and_then(|placement| rendered(&placement, host.as_ref()))),
        Command::Explain { model, file, fleet } => {
            (file.format.into(), prove(&file).and_then(|placement| explained(&placement, &model, fleet.as_deref())))
        }
        Command::Plan { file, fleet } => (file.format.into(), prove(&file).and_then(|placement| planned(&placement, &fleet))),
    };
    let written = match outcome {
        Ok(text) => std::io::stdout().write_all(text.as_bytes()).map(|()| ExitCode::SUCCESS),
        Err(wrong) if form == Form::Json => std::io::stdout().write_all(render(&wrong, form).as_bytes()).map(|()| ExitCode::FAILURE),
        Err(wrong) => std::io::stderr().write_all(render(&wrong, form).as_bytes()).map(|()| ExitCode::FAILURE),
    };
    written.unwrap_or(ExitCode::FAILURE)
}

/// From the file to a proven placement.
fn prove(args: &FileArgs) -> Result<Placement, Vec<Diagnostic>> {
    let twice = doubles(&args.file);
    if !twice.is_empty() {
        return Err(twice);
    }
    let program = std::env::current_exe().map_err(|error| vec![Diagnostic::new(format!("cannot find this program: {error}"))])?;
    let Evaluated { value, marks } = child::run(&program, &Request { file: &args.file, hosts: args.hosts.as_deref() })?;
    let told = |problems: Vec<Problem>| -> Vec<Diagnostic> {
        in_order(problems.into_iter().map(|problem| pointed(problem, Marks::span, &marks)).collect())
    };
    let strays = fields::unknown(&value);
    if !strays.is_empty() {
        return Err(in_order(strays.into_iter().map(|stray| pointed(stray, Marks::name, &marks)).collect()));
    }
    let declared: Declared = serde_json::from_value(value).map_err(|error| {
        vec![
            Diagnostic::new(format!("the contracts and this program disagree: {error}"))
                .note("this is a mistake in cortex; please report it"),
        ]
    })?;
    let beside = args.file.parent().unwrap_or(Path::new("."));
    let hub = config::hub_cache();
    let unknown = declared.models.iter().filter(|(_, model)| model.vram_mb.is_none());
    let (mut footprints, mut broken) = (BTreeMap::new(), Vec::new());
    for (id, model) in unknown {
        match checkpoint::footprint(id.as_str(), model, beside, hub.as_deref()) {
            Ok(footprint) => footprints.extend(footprint.map(|footprint| (id.clone(), footprint))),
            Err(why) => {
                let told = Problem::at(&["models", id.as_str(), "source"], format!("the memory of `{id}` cannot be computed: {why}"));
                broken.push(told.note("say vram_mb, or see that the checkpoint is whole: where it is at hand it is read"));
            }
        }
    }
    if !broken.is_empty() {
        return Err(told(broken));
    }
    let placement = check(&declared, &footprints, args.survive == 1).map_err(told)?;
    placement.verify().map_err(|flaw| {
        vec![Diagnostic::new(format!("the proof does not hold: {flaw}")).note("this is a mistake in cortex; please report it")]
    })?;
    Ok(placement)
}

fn doubles(file: &Path) -> Vec<Diagnostic> {
    // A file that cannot be read is told of by the evaluation.
    std::fs::read_to_string(file).map(|source| duplicate::find(&file.display().to_string(), &source)).unwrap_or_default()
}

/// As they stand in the file.
fn in_order(mut all: Vec<Diagnostic>) -> Vec<Diagnostic> {
    all.sort_by_key(|one| one.spans.first().map(|span| (span.file.clone(), span.line, span.column)));
    all
}

fn pointed(problem: Problem, place: fn(&Marks, &[String]) -> Option<Span>, marks: &Marks) -> Diagnostic {
    let Problem { path, message, label, notes } = problem;
    let span = place(marks, &path).map(|span| span.labelled(label));
    Diagnostic { message, spans: span.into_iter().collect(), notes }
}

/// `ok`, and the residents with what is left beside them.
fn summary(file: &Path, placement: &Placement) -> String {
    let proof = &placement.certificate;
    let mut out =
        format!("ok: {} is proven: {} on {}", file.display(), many(placement.models.len(), "model"), many(placement.hosts.len(), "host"));
    out.push_str(&format!(", {} held always, generation {}\n", many(proof.residents.len(), "replica"), placement.generation));
    for (host, slack) in &proof.slack_mb {
        for (index, slack_mb) in slack.iter().enumerate() {
            let here = proof.residents.iter().filter(|resident| resident.host == *host && resident.devices.contains(&index));
            let models: Vec<&str> = here.map(|resident| resident.model.as_str()).collect();
            let held = if models.is_empty() { "nothing held always".to_owned() } else { models.join(", ") };
            out.push_str(&format!("  {host}:{index}  {:>9} free beside  {held}\n", gib(*slack_mb)));
        }
    }
    let unknown: Vec<&str> =
        placement.models.iter().filter(|(_, profile)| profile.footprint.is_none()).map(|(id, _)| id.as_str()).collect();
    if !unknown.is_empty() {
        out.push_str(&format!("  not counted, for want of vram_mb or a checkpoint at hand: {}\n", unknown.join(", ")));
    }
    if !proof.survives.is_empty() {
        out.push_str("  the loss of any one host leaves a place for everything\n");
    }
    out
}

/// Each seed with how its run went.
fn simulated(nodes: usize, seeds: std::ops::Range<u64>, faults: bool) -> Result<Vec<(u64, Outcome)>, Vec<Diagnostic>> {
    let run = |seed| match simulate(&Simulation { nodes, seed, faults }, processor_time) {
        Ok(outcome) => Ok((seed, outcome)),
        Err(broken) => Err(vec![Diagnostic::new(format!("seed {seed}: {broken}"))]),
    };
    seeds.map(run).collect()
}

/// How long this thread has computed: on a busy machine the clock on the wall tells little of a decision.
fn processor_time() -> Duration {
    let spent = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(spent.tv_sec).unwrap_or(0), u32::try_from(spent.tv_nsec).unwrap_or(0))
}

/// One line a seed.
fn table(runs: &[(u64, Outcome)]) -> String {
    let mut out = String::from(
        "SEED  LOADS  FAILED  UNLOADS  REBUILT  LOST  SERVED  WAIT MAX  REST STEPS  DECISION MIDDLE        MAX  OF A PROCESSOR        MAX\n",
    );
    for (seed, run) in runs {
        out.push_str(&format!(
            "{seed:>4}  {:>5}  {:>6}  {:>7}  {:>7}  {:>4}  {:>6}  {:>6.1} s  {:>10}  {:>12} us  {:>6} us  {:>11} us  {:>6} us\n",
            run.loads,
            run.loads_failed,
            run.unloads,
            run.defrags,
            run.losses,
            run.served,
            run.waited_ms_max as f64 / 1000.0,
            run.rest_steps,
            run.decision.middle.as_micros(),
            run.decision.max.as_micros(),
            run.processor.middle.as_micros(),
            run.processor.max.as_micros(),
        ));
    }
    out
}

/// The same for programs.
fn listed(runs: &[(u64, Outcome)]) -> String {
    let record = |(seed, run): &(u64, Outcome)| {
        serde_json::json!({
            "seed": seed,
            "loads": run.loads,
            "loads_failed": run.loads_failed,
            "unloads": run.unloads,
            "defrags": run.defrags,
            "losses": run.losses,
            "served": run.served,
            "waited_ms_max": run.waited_ms_max,
            "rest_steps": run.rest_steps,
            "decision_middle_us": run.decision.middle.as_micros() as u64,
            "decision_max_us": run.decision.max.as_micros() as u64,
            "processor_middle_us": run.processor.middle.as_micros() as u64,
            "processor_max_us": run.processor.max.as_micros() as u64,
        })
    };
    serde_json::Value::from(runs.iter().map(record).collect::<Vec<_>>()).to_string() + "\n"
}

fn many(count: usize, one: &str) -> String {
    format!("{count} {one}{}", if count == 1 { "" } else { "s" })
}

fn rendered(placement: &Placement, host: Option<&NodeId>) -> Result<String, Vec<Diagnostic>> {
    let Some(name) = host else { return Ok(placement.to_json() + "\n") };
    let known = placement.hosts.keys().map(NodeId::as_str).collect::<Vec<_>>().join(", ");
    let host =
        placement.host(name).ok_or_else(|| vec![Diagnostic::new(format!("there is no host `{name}`")).note(format!("hosts: {known}"))])?;
    serde_json::to_string_pretty(host).map(|json| json + "\n").map_err(|error| vec![Diagnostic::new(error.to_string())])
}

fn explained(placement: &Placement, model: &str, fleet: Option<&Path>) -> Result<String, Vec<Diagnostic>> {
    let report = fleet.map(reported).transpose()?;
    plan::explain(placement, model, report.as_ref()).ok_or_else(|| {
        let known = placement.models.keys().map(cortex_core::ModelId::as_str).chain(placement.routing.aliases.keys().map(String::as_str));
        let wrong = Diagnostic::new(format!("there is no model `{model}`"));
        vec![match cortex_placement::nearest(model, known) {
            Some(near) => wrong.note(format!("did you mean `{near}`?")),
            None => wrong.note("cortex placement check lists the models"),
        }]
    })
}

fn planned(placement: &Placement, fleet: &Path) -> Result<String, Vec<Diagnostic>> {
    let report = reported(fleet)?;
    Ok(plan::words(placement, &plan::plan(placement, &report)) + &plan::memory(placement, &report))
}

/// What a gateway said of its fleet.
fn reported(fleet: &Path) -> Result<FleetReport, Vec<Diagnostic>> {
    let mut text = String::new();
    let read = match fleet == Path::new("-") {
        true => std::io::stdin().read_to_string(&mut text).map(|_| ()),
        false => std::fs::read_to_string(fleet).map(|read| text = read),
    };
    read.map_err(|error| vec![Diagnostic::new(format!("cannot read {}: {error}", fleet.display()))])?;
    serde_json::from_str(&text)
        .map_err(|error| vec![Diagnostic::new(format!("{} is no answer of GET /admin/fleet: {error}", fleet.display()))])
}
