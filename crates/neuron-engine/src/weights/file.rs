//! A file of weights: stored, or made up.

use std::path::Path;

use safetensors::tensor::TensorInfo;

use super::random::RandomFile;
use super::safetensors::{Element, SafetensorsFile, Stored};
use crate::error::LoadError;

#[derive(Debug)]
pub(super) enum WeightsFile {
    Stored(SafetensorsFile),
    Random(RandomFile),
}

impl WeightsFile {
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Stored(file) => file.path(),
            Self::Random(file) => file.path(),
        }
    }

    pub(super) fn names(&self) -> Vec<String> {
        match self {
            Self::Stored(file) => file.names(),
            Self::Random(file) => file.names(),
        }
    }

    pub(super) fn info(&self, name: &str) -> Option<&TensorInfo> {
        match self {
            Self::Stored(file) => file.info(name),
            Self::Random(file) => file.info(name),
        }
    }

    /// Fills `out` with the tensor's elements from `start` on, converted. `buffer` is scratch.
    pub(super) fn read<T: Element>(
        &self,
        info: &TensorInfo,
        stored: Stored,
        start: usize,
        out: &mut [T],
        buffer: &mut Vec<u8>,
    ) -> Result<(), LoadError> {
        match self {
            Self::Stored(file) => file.read(info, stored, start, out, buffer),
            Self::Random(file) => {
                file.read(info, start, out);
                Ok(())
            }
        }
    }
}
