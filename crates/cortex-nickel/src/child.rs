//! Evaluation in a child process with limits, because Nickel has none: a file that never ends, or that nests without end, ends the
//! child with an error for the operator.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::diagnostic::Diagnostic;
use crate::nickel::{Evaluated, Request, evaluate};

/// The subcommand that makes this program the child.
pub(crate) const SUBCOMMAND: &str = "evaluate";

/// What the child may use.
const ADDRESS_SPACE_BYTES_MAX: u64 = 1 << 30;
const STACK_BYTES: usize = 192 << 20;
const CPU_S_MAX: u64 = 10;
const WALL_S_MAX: u64 = 30;
/// What the parent reads of it.
const ANSWER_BYTES_MAX: u64 = 256 << 20;
const COMPLAINT_BYTES_MAX: u64 = 64 << 10;

/// What the child writes to standard output.
#[derive(Serialize, Deserialize)]
enum Answer {
    Value(Box<Evaluated>),
    Wrong(Vec<Diagnostic>),
}

/// Evaluates in a child. `program` is this program.
pub(crate) fn run(program: &Path, request: &Request<'_>) -> Result<Evaluated, Vec<Diagnostic>> {
    let mut command = Command::new(program);
    command.arg(SUBCOMMAND).arg(request.file).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(hosts) = request.hosts {
        command.arg(OsStr::new("--hosts")).arg(hosts);
    }
    let failed = |error: std::io::Error| vec![Diagnostic::new(format!("cannot start the evaluation: {error}"))];
    let mut child = command.spawn().map_err(failed)?;
    let (sender, answers) = mpsc::channel();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let complaints = std::thread::spawn(move || read_up_to(stderr, COMPLAINT_BYTES_MAX));
    std::thread::spawn(move || drop(sender.send(read_up_to(stdout, ANSWER_BYTES_MAX))));
    // The channel is empty only while the child runs.
    let answer = answers.recv_timeout(Duration::from_secs(WALL_S_MAX)).ok();
    if answer.is_none() {
        let _ = child.kill();
    }
    let status = child.wait().map_err(failed)?;
    let complaint = complaints.join().unwrap_or_default();
    match answer.as_deref().and_then(|answer| serde_json::from_slice(answer).ok()) {
        Some(Answer::Value(evaluated)) => Ok(*evaluated),
        Some(Answer::Wrong(diagnostics)) => Err(diagnostics),
        None => Err(vec![ended(request.file, status, answer.is_none(), &String::from_utf8_lossy(&complaint))]),
    }
}

fn read_up_to(stream: Option<impl Read>, limit: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        // What cannot be read shows as an incomplete answer.
        let _ = stream.take(limit).read_to_end(&mut bytes);
    }
    bytes
}

/// Why there is no answer.
fn ended(file: &Path, status: ExitStatus, late: bool, complaint: &str) -> Diagnostic {
    use std::os::unix::process::ExitStatusExt;
    const SIGKILL: i32 = 9;
    const SIGXCPU: i32 = 24;
    let file = file.display();
    let endless = "look for a definition that refers to itself, or a function that never stops calling itself";
    if late || matches!(status.signal(), Some(SIGKILL | SIGXCPU)) {
        return Diagnostic::new(format!("{file} takes too long: it was given {CPU_S_MAX} s of processor time and {WALL_S_MAX} s in all"))
            .note(endless);
    }
    if complaint.contains("overflowed its stack") {
        let deep = format!("{file} is nested too deeply: its evaluation needs more than {} MiB of stack", STACK_BYTES >> 20);
        return Diagnostic::new(deep).note(endless).note("or for records within records, thousands deep");
    }
    if complaint.contains("memory allocation") || complaint.contains("capacity overflow") {
        let large = format!("{file} needs too much memory: its evaluation was given {} MiB", ADDRESS_SPACE_BYTES_MAX >> 20);
        return Diagnostic::new(large).note(endless);
    }
    let first = complaint.lines().find(|line| !line.trim().is_empty() && !line.starts_with("thread ")).unwrap_or("it said nothing");
    Diagnostic::new(format!("the evaluation of {file} ended unexpectedly ({status})")).note(first.to_owned())
}

/// What the child does.
pub(crate) fn main(file: PathBuf, hosts: Option<PathBuf>) -> ExitCode {
    let limited =
        limit(Resource::As, ADDRESS_SPACE_BYTES_MAX).and_then(|()| limit(Resource::Cpu, CPU_S_MAX)).and_then(|()| limit(Resource::Core, 0));
    if let Err(error) = limited {
        eprintln!("cannot limit the evaluation: {error}");
        return ExitCode::FAILURE;
    }
    let work = move || match evaluate(&Request { file: &file, hosts: hosts.as_deref() }) {
        Ok(evaluated) => Answer::Value(Box::new(evaluated)),
        Err(wrong) => Answer::Wrong(wrong),
    };
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(work);
    let Some(answer) = thread.ok().and_then(|thread| thread.join().ok()) else { return ExitCode::FAILURE };
    let written = serde_json::to_vec(&answer).map_err(std::io::Error::other).and_then(|bytes| std::io::stdout().write_all(&bytes));
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn limit(resource: Resource, most: u64) -> rustix::io::Result<()> {
    setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
}
