//! Why a checkpoint cannot be served. Each message names the file at fault, what is wrong with it, and what to do.

use std::path::PathBuf;

use cortex_core::HarnessError;

/// A checkpoint that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file that should be there is not.
    #[error("`{}` is missing; {hint}", file.display())]
    Missing {
        /// The file looked for.
        file: PathBuf,
        /// What to do about it.
        hint: String,
    },
    /// The file is there, but the operating system does not give it to us.
    #[error("cannot read `{}`: {source}; check that the file exists and that this user may read it", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write `{}`: {source}; check the room on the disk and that this user may write there", file.display())]
    Unwritable {
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file's contents are not what its format asks for.
    #[error("`{}` is malformed: {what}; download the file again, or report it to the model's author", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// No model file implements this architecture.
    #[error("the architecture `{name}` is not supported; supported are {known}")]
    UnknownArchitecture {
        /// As `config.json` calls it.
        name: String,
        /// Every name that is supported, separated by commas.
        known: String,
    },
    /// A field of `config.json` is absent, of the wrong type or out of range.
    #[error("config.json: `{field}` {what}")]
    Config {
        /// The field's path (`text_config.hidden_size`).
        field: String,
        /// What is wrong with it ("is missing", "must be a multiple of 2, but is 3").
        what: String,
    },
    /// A tensor is absent or has another shape than the configuration implies.
    #[error("`{}`: tensor `{name}` {what}; config.json and the weights may belong to different models", file.display())]
    Tensor {
        /// The tensor.
        name: String,
        /// The file that holds it, or the index that should name it.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The checkpoint is well-formed, but asks for something that this engine does not do.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// The device refused: no such device, out of memory, a driver error.
    #[error("device: {0}")]
    Device(String),
}

impl From<candle_core::Error> for LoadError {
    fn from(error: candle_core::Error) -> Self {
        Self::Device(error.to_string())
    }
}

/// Why a device did not do what an engine asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The step failed; the next one may succeed.
    #[error("a step failed: {0}")]
    Step(String),
    /// The step panicked, so the model's state is not to be trusted.
    #[error("a step panicked: {0}; unload the model and load it again")]
    Panicked(String),
    /// The device does not hold this model.
    #[error("the device does not hold this model; load it again")]
    NotLoaded,
    /// The device failed, and all that was in its memory is lost. Only another process can use it again.
    #[error("the device failed: {0}")]
    Failed(String),
    /// The device's thread has ended.
    #[error("the device's thread has ended; restart neuron")]
    Gone,
}

impl DeviceError {
    /// True when only loading the model again can help.
    pub fn is_lasting(&self) -> bool {
        !matches!(self, Self::Step(_))
    }
}

/// Seconds after which the next process usually has the model back.
const RETURN_S: u64 = 5;

impl From<DeviceError> for HarnessError {
    fn from(error: DeviceError) -> Self {
        match error {
            DeviceError::Failed(_) => Self::DeviceFailed { reason: error.to_string(), retry_after_s: RETURN_S },
            other => Self::Internal(other.to_string()),
        }
    }
}
