//! How this program logs.

use std::io::IsTerminal;

use cortex_log::{LogError, Logging};

use crate::error::{CliError, Result};
use crate::style::Style;

/// Starts logging; `CORTEX_LOG` replaces `default` (`info`, `debug,hyper=warn`).
pub(crate) fn start(default: &str) -> Result<Logging> {
    let filter = std::env::var("CORTEX_LOG").unwrap_or_else(|_| default.into());
    let journal_stream = std::env::var("JOURNAL_STREAM").ok();
    let style = cortex_log::Style {
        filter: &filter,
        journal_stream: journal_stream.as_deref(),
        ansi: Style::of_stderr().colour,
        target: !std::io::stderr().is_terminal(),
    };
    cortex_log::start(style).map_err(|error| match error {
        LogError::Filter { filter, why } => CliError::new(format!("CORTEX_LOG=`{filter}` cannot be understood: {why}"))
            .note("write a level (info, debug) or target=level, with commas"),
        LogError::Started(_) => CliError::new(error.to_string()),
    })
}
