//! One safetensors file: a header that is checked once, and slices read from their place in the file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use candle_core::DType;
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use neuron_kernels::Staged;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::error::LoadError;

/// Bytes of the length field that opens a file.
const LENGTH_BYTES: u64 = 8;
/// The format's own limit on headers.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// An open file whose header agrees with its length.
#[derive(Debug)]
pub(super) struct SafetensorsFile {
    path: PathBuf,
    file: File,
    header: Metadata,
    data_start: u64,
}

/// How an element lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    F32,
    F16,
    Bf16,
}

/// A type that weights are held in.
pub(super) trait Element: Staged {
    /// Memory that the system hands out as zeros when it is first touched, by whichever thread that is.
    fn zeros(count: usize) -> Vec<Self>;
    fn from_f32(x: f32) -> Self;
    fn from_f16(x: f16) -> Self;
    fn from_bf16(x: bf16) -> Self;
}

impl SafetensorsFile {
    pub(super) fn open(path: &Path) -> Result<Self, LoadError> {
        let unreadable = |source| LoadError::Unreadable { file: path.to_owned(), source };
        let malformed = |what| LoadError::Malformed { file: path.to_owned(), what };
        let file = File::open(path).map_err(unreadable)?;
        let file_len = file.metadata().map_err(unreadable)?.len();
        if file_len < LENGTH_BYTES {
            return Err(malformed(format!("it has {file_len} bytes, too few for a safetensors header")));
        }
        let mut length = [0; LENGTH_BYTES as usize];
        file.read_exact_at(&mut length, 0).map_err(unreadable)?;
        let header_len = u64::from_le_bytes(length);
        if header_len > HEADER_BYTES_MAX || header_len > file_len - LENGTH_BYTES {
            return Err(malformed(format!("it claims a header of {header_len} bytes in a file of {file_len}")));
        }
        let mut header = vec![0; header_len as usize];
        file.read_exact_at(&mut header, LENGTH_BYTES).map_err(unreadable)?;
        // Deserialising checks that the tensors fill the data without gaps or overlaps and that no size overflows.
        let header: Metadata = serde_json::from_slice(&header).map_err(|error| malformed(format!("its header is wrong: {error}")))?;
        let data_start = LENGTH_BYTES + header_len;
        let expected_len = data_start.saturating_add(header.data_len() as u64);
        if expected_len != file_len {
            return Err(malformed(format!("its header describes {expected_len} bytes, but the file has {file_len}")));
        }
        Ok(Self { path: path.to_owned(), file, header, data_start })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    pub(super) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.header.info(name)
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
        buffer.resize(out.len() * stored.size(), 0);
        let at = self.data_start + (info.data_offsets.0 + start * stored.size()) as u64;
        self.file.read_exact_at(buffer, at).map_err(|source| LoadError::Unreadable { file: self.path.clone(), source })?;
        stored.convert(buffer, out);
        Ok(())
    }
}

impl Stored {
    pub(super) fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// The same type in memory.
    pub(super) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }

    fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Safetensors is little-endian everywhere.
    fn convert<T: Element>(self, bytes: &[u8], out: &mut [T]) {
        match self {
            Self::F32 => out.iter_mut().zip(bytes.as_chunks().0).for_each(|(out, b)| *out = T::from_f32(f32::from_le_bytes(*b))),
            Self::F16 => out.iter_mut().zip(bytes.as_chunks().0).for_each(|(out, b)| *out = T::from_f16(f16::from_le_bytes(*b))),
            Self::Bf16 => out.iter_mut().zip(bytes.as_chunks().0).for_each(|(out, b)| *out = T::from_bf16(bf16::from_le_bytes(*b))),
        }
    }
}

impl Element for f32 {
    fn zeros(count: usize) -> Vec<Self> {
        vec![0.0; count]
    }
    fn from_f32(x: f32) -> Self {
        x
    }
    fn from_f16(x: f16) -> Self {
        x.to_f32()
    }
    fn from_bf16(x: bf16) -> Self {
        x.to_f32()
    }
}

impl Element for f16 {
    fn zeros(count: usize) -> Vec<Self> {
        vec![0u16; count].reinterpret_into()
    }
    fn from_f32(x: f32) -> Self {
        Self::from_f32(x)
    }
    fn from_f16(x: f16) -> Self {
        x
    }
    fn from_bf16(x: bf16) -> Self {
        Self::from_f32(x.to_f32())
    }
}

impl Element for bf16 {
    fn zeros(count: usize) -> Vec<Self> {
        vec![0u16; count].reinterpret_into()
    }
    fn from_f32(x: f32) -> Self {
        Self::from_f32(x)
    }
    fn from_f16(x: f16) -> Self {
        Self::from_f32(x.to_f32())
    }
    fn from_bf16(x: bf16) -> Self {
        x
    }
}
