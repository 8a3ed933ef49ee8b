//! After a device failed. CUDA then works in no part of this process any more, also not on the other GPUs, so the program starts anew in
//! its own place: the same process id, arguments and environment, and the models that were in memory.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use cortex_core::ModelSpec;
use serde::{Deserialize, Serialize};

/// The variable in which a process leaves its [`Legacy`] to the next. Not for people.
pub(crate) const VARIABLE: &str = "NEURON_LEGACY";

/// A program whose devices failed so often within [`WINDOW`] is left to its service manager: one of the models may be what breaks them.
const FAILURES_MAX: usize = 4;
const WINDOW: Duration = Duration::from_mins(10);

/// What a process whose device failed leaves to the one that takes its place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Legacy {
    /// What was in memory. The successor loads it after its preloads.
    pub models: Vec<ModelSpec>,
    /// When devices failed lately, in seconds since 1970.
    pub failures: Vec<u64>,
}

impl Legacy {
    /// What this process leaves, having inherited `self`, when a device fails `now` with `models` in memory. An error when that happens too
    /// often.
    pub(crate) fn after_failure(&self, models: Vec<ModelSpec>, now: SystemTime) -> anyhow::Result<Self> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let recent = self.failures.iter().copied().filter(|then| now.saturating_sub(*then) < WINDOW.as_secs());
        let failures: Vec<u64> = recent.chain([now]).collect();
        let minutes = WINDOW.as_secs() / 60;
        anyhow::ensure!(
            failures.len() < FAILURES_MAX,
            "devices failed {FAILURES_MAX} times within {minutes} minutes: start fewer models to find the one that breaks them"
        );
        Ok(Self { models, failures })
    }

    /// Puts the program in its own place. Answers only when that cannot be done. Nothing of this process is cleaned up.
    pub fn hand_over(&self) -> anyhow::Error {
        match self.successor() {
            Ok(mut program) => anyhow::Error::new(program.exec()).context("cannot start anew"),
            Err(error) => error.context("cannot start anew"),
        }
    }

    fn successor(&self) -> anyhow::Result<Command> {
        let mut program = Command::new(std::env::current_exe()?);
        let mut args = std::env::args_os();
        if let Some(name) = args.next() {
            program.arg0(name);
        }
        program.args(args).env(VARIABLE, serde_json::to_string(self).context("its models cannot be written down")?);
        Ok(program)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_failures_within_ten_minutes_are_too_many() {
        let at = |second| UNIX_EPOCH + Duration::from_secs(second);
        let models = vec![ModelSpec::new("chat")];
        let after = |failures: &[u64], now| {
            let legacy = Legacy { models: Vec::new(), failures: failures.to_vec() };
            legacy.after_failure(models.clone(), at(now)).ok().map(|legacy| legacy.failures)
        };
        assert_eq!(after(&[], 1000), Some(vec![1000]));
        assert_eq!(after(&[1000, 1100], 1200), Some(vec![1000, 1100, 1200]));
        assert_eq!(after(&[1000, 1100, 1200], 1599), None);
        assert_eq!(after(&[1000, 1100, 1200], 1600), Some(vec![1100, 1200, 1600]));
        assert_eq!(Legacy::default().after_failure(models.clone(), at(1)).unwrap().models, models);
    }
}
