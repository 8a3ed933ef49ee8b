//! `cortex placement`: starts the program that reads models.ncl. It is a program of its own because what evaluates that language is
//! large, and neither serving nor asking needs it.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cortex_net::Trust;
use serde_json::Value;

use crate::GATEWAY_DEFAULT;
use crate::client::Gateway;
use crate::error::{CliError, Result, Status};

const PROGRAM: &str = "cortex-placement";

/// Everything goes to the other program; `plan` and `explain` get the fleet from here.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct PlacementArgs {
    /// check, render, plan, explain or contract; --help tells more
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<OsString>,
}

/// Runs the other program to its end; its exit status is ours.
pub(crate) async fn run(args: PlacementArgs) -> Result<Option<Status>> {
    let program = program()?;
    let Asked { arguments, asks_fleet, url, key } = Asked::read(args.arguments)?;
    let fleet = if asks_fleet { Some(fleet(url, key).await?) } else { None };
    let mut command = Command::new(&program);
    command.args(arguments);
    if fleet.is_some() {
        command.args(["--fleet", "-"]).stdin(Stdio::piped());
    }
    let failed = |error: std::io::Error| CliError::new(format!("cannot run {}: {error}", program.display()));
    let mut child = command.spawn().map_err(failed)?;
    if let (Some(mut input), Some(fleet)) = (child.stdin.take(), fleet) {
        // A program that ends early says why itself.
        let _ = input.write_all(fleet.to_string().as_bytes());
    }
    Ok(match child.wait().map_err(failed)?.code() {
        Some(0) => None,
        Some(2) => Some(Status::Usage),
        _ => Some(Status::Failed),
    })
}

/// The rendered form of `file`: its text, or what the other program makes of a models.ncl.
pub(crate) fn rendered(file: &Path) -> Result<String> {
    let unusable = || CliError::new(format!("{} cannot be used", file.display()));
    if file.extension().is_none_or(|extension| extension != "ncl") {
        return std::fs::read_to_string(file).map_err(|error| unusable().note(error.to_string()));
    }
    let program = program()?;
    let output = Command::new(&program).arg("render").arg(file).stdin(Stdio::null()).output();
    let output = output.map_err(|error| CliError::new(format!("cannot run {}: {error}", program.display())))?;
    match output.status.success() {
        true => String::from_utf8(output.stdout).map_err(|error| unusable().note(error.to_string())),
        false => Err(CliError::new(format!("{} cannot be used\n{}", file.display(), String::from_utf8_lossy(&output.stderr)))),
    }
}

fn program() -> Result<PathBuf> {
    let beside = std::env::current_exe().ok();
    find(beside.as_deref().and_then(Path::parent), std::env::var_os("PATH").as_deref()).ok_or_else(missing)
}

async fn fleet(url: Option<String>, key: Option<String>) -> Result<Value> {
    let url = url.or_else(|| std::env::var("CORTEX_GATEWAY").ok()).unwrap_or_else(|| GATEWAY_DEFAULT.to_owned());
    let key = key.or_else(|| std::env::var("CORTEX_API_KEY").ok());
    let trust = std::env::var_os("CORTEX_CA").map_or_else(|| Ok(Trust::public()), |file| Trust::of_file(Path::new(&file)));
    let gateway = Gateway::new(&url, key, trust.map_err(|error| CliError::new(error.to_string()))?)?;
    let (_, raw) = gateway.get::<Value>("/admin/fleet").await?;
    Ok(raw)
}

/// The command line, as far as it matters here.
#[derive(Debug, PartialEq)]
struct Asked {
    arguments: Vec<OsString>,
    asks_fleet: bool,
    url: Option<String>,
    key: Option<String>,
}

impl Asked {
    /// `plan` without `--fleet` asks the gateway, which `--gateway URL` names and `--key KEY` opens; `explain` does where one of them is
    /// given, since it tells most of what it tells without a fleet.
    fn read(all: Vec<OsString>) -> Result<Self> {
        let has = |flag: &str| all.iter().any(|argument| argument == flag || argument.to_string_lossy().starts_with(&format!("{flag}=")));
        let is = |command: &str| all.first().is_some_and(|first| first == command);
        let tells_of_it = is("plan") || (is("explain") && (has("--gateway") || has("--key")));
        let asks_fleet = tells_of_it && !["--fleet", "--help", "-h"].into_iter().any(has);
        if !asks_fleet {
            return Ok(Self { arguments: all, asks_fleet, url: None, key: None });
        }
        let (mut arguments, mut url, mut key) = (Vec::new(), None, None);
        let mut rest = all.into_iter();
        while let Some(argument) = rest.next() {
            let text = argument.to_string_lossy().into_owned();
            let (flag, value) = text.split_once('=').map_or((text.as_str(), None), |(flag, value)| (flag, Some(value.to_owned())));
            let wanted = match flag {
                "--gateway" => &mut url,
                "--key" => &mut key,
                _ => {
                    arguments.push(argument);
                    continue;
                }
            };
            let next = || rest.next().map(|value| value.to_string_lossy().into_owned());
            let missing = || CliError::new(format!("{flag} needs a value")).with_status(Status::Usage);
            *wanted = Some(value.or_else(next).ok_or_else(missing)?);
        }
        Ok(Self { arguments, asks_fleet, url, key })
    }
}

/// Beside this program, or on the PATH.
fn find(beside: Option<&Path>, path: Option<&OsStr>) -> Option<PathBuf> {
    let folders = beside.map(Path::to_owned).into_iter().chain(path.iter().flat_map(std::env::split_paths));
    folders.map(|folder| folder.join(PROGRAM)).find(|program| program.is_file())
}

fn missing() -> CliError {
    CliError::new(format!("`{PROGRAM}`, which reads models.ncl, is neither beside this program nor on the PATH"))
        .note("build it: cargo build --release -p cortex-nickel")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Asked {
        Asked::read(line.split(' ').map(OsString::from).collect()).unwrap()
    }

    #[test]
    fn the_gateway_is_asked_where_its_fleet_is_told_of() {
        let cases = [
            ("check models.ncl", false, None, "check models.ncl"),
            ("plan", true, None, "plan"),
            ("plan --gateway http://g:1 f.ncl", true, Some("http://g:1"), "plan f.ncl"),
            ("plan --gateway=http://g:1", true, Some("http://g:1"), "plan"),
            ("plan --fleet fleet.json", false, None, "plan --fleet fleet.json"),
            ("plan --help", false, None, "plan --help"),
            ("explain large", false, None, "explain large"),
            ("explain large --gateway http://g:1", true, Some("http://g:1"), "explain large"),
        ];
        for (line, asks_fleet, url, rest) in cases {
            let arguments = rest.split(' ').map(OsString::from).collect();
            let expected = Asked { arguments, asks_fleet, url: url.map(str::to_owned), key: None };
            assert_eq!(asked(line), expected, "{line}");
        }
        assert_eq!(asked("plan --key k --gateway=u").key.as_deref(), Some("k"));
    }

    #[test]
    fn the_program_beside_wins_over_the_one_on_the_path() {
        let (beside, path) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let find = || find(Some(beside.path()), Some(path.path().as_os_str()));
        assert_eq!(find(), None);
        std::fs::write(path.path().join(PROGRAM), "").unwrap();
        assert_eq!(find(), Some(path.path().join(PROGRAM)));
        std::fs::write(beside.path().join(PROGRAM), "").unwrap();
        assert_eq!(find(), Some(beside.path().join(PROGRAM)));
    }
}
