//! Weights that are made up, for measuring the speed of a shape without downloading a model.
//!
//! A folder with `model.random.json` instead of weight files names the tensors. Their numbers depend on the seed and on their place
//! only, so every rank, device and slice sees the same ones, and so does a file that [`store`] writes of them.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use half::bf16;
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::{Deserialize, Serialize};

use super::safetensors::Element;
use crate::error::LoadError;
use crate::split_mix;

/// The file that stands for weights.
pub const FILE: &str = "model.random.json";

/// The tensors of a made-up checkpoint, all in bf16. Matrices are scaled by their width, so that activations keep their size from
/// layer to layer and the logits of different prompts differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RandomCheckpoint {
    /// Another seed, other numbers.
    pub seed: u64,
    /// Shapes by name.
    pub tensors: BTreeMap<String, Vec<usize>>,
}

/// The made-up file, opened.
#[derive(Debug)]
pub(super) struct RandomFile {
    path: PathBuf,
    seed: u64,
    tensors: HashMap<String, TensorInfo>,
}

const ELEMENT_BYTES: usize = size_of::<bf16>();
/// Elements made at a time when a file is written.
const WRITE_ELEMENTS_MAX: usize = 1 << 22;

impl RandomCheckpoint {
    /// Writes the description into `folder`.
    pub fn describe(&self, folder: &Path) -> Result<(), LoadError> {
        let file = folder.join(FILE);
        let text = serde_json::to_vec_pretty(self).map_err(|error| LoadError::Malformed { file: file.clone(), what: error.to_string() })?;
        std::fs::write(&file, text).map_err(|source| LoadError::Unwritable { file, source })
    }

    /// Reads the description in `folder`.
    pub fn read(folder: &Path) -> Result<Self, LoadError> {
        let file = folder.join(FILE);
        let text = std::fs::read(&file).map_err(|source| LoadError::Unreadable { file: file.clone(), source })?;
        serde_json::from_slice(&text).map_err(|error| LoadError::Malformed { file, what: error.to_string() })
    }

    /// Writes the same weights as a real file, `model.safetensors`, which then wins over the description.
    pub fn store(&self, folder: &Path) -> Result<(), LoadError> {
        let file = folder.join("model.safetensors");
        self.write(&file).map_err(|source| LoadError::Unwritable { file, source })
    }

    fn write(&self, file: &Path) -> std::io::Result<()> {
        let infos = self.infos();
        let elements = infos.last().map_or(0, |(_, info)| info.data_offsets.1 / ELEMENT_BYTES);
        let numbers: Vec<(usize, Numbers)> =
            infos.iter().map(|(_, info)| (info.data_offsets.1, Numbers::new(self.seed, &info.shape))).collect();
        let header = Metadata::new(None, infos).map_err(std::io::Error::other)?;
        let header = serde_json::to_vec(&header)?;
        let mut out = BufWriter::new(File::create(file)?);
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        let mut start = 0;
        for (end, numbers) in numbers {
            let end = end / ELEMENT_BYTES;
            while start < end {
                let stop = end.min(start + WRITE_ELEMENTS_MAX);
                let bytes: Vec<[u8; ELEMENT_BYTES]> = (start..stop).into_par_iter().map(|at| numbers.at(at).to_le_bytes()).collect();
                out.write_all(bytes.as_flattened())?;
                start = stop;
            }
        }
        debug_assert_eq!(start, elements, "every tensor was written");
        out.flush()
    }

    /// The tensors one after the other, in order of name.
    fn infos(&self) -> Vec<(String, TensorInfo)> {
        let mut end = 0;
        let info = |(name, shape): (&String, &Vec<usize>)| {
            let start = end;
            end += shape.iter().product::<usize>() * ELEMENT_BYTES;
            (name.clone(), TensorInfo { dtype: Dtype::BF16, shape: shape.clone(), data_offsets: (start, end) })
        };
        self.tensors.iter().map(info).collect()
    }
}

impl RandomFile {
    pub(super) fn open(folder: &Path) -> Result<Self, LoadError> {
        let checkpoint = RandomCheckpoint::read(folder)?;
        tracing::warn!(folder = %folder.display(), "these weights are random numbers, for measurements only");
        Ok(Self { path: folder.join(FILE), seed: checkpoint.seed, tensors: checkpoint.infos().into_iter().collect() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    pub(super) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Fills `out` with the tensor's elements from `start` on, as if they were read from a file.
    pub(super) fn read<T: Element>(&self, info: &TensorInfo, start: usize, out: &mut [T]) {
        let numbers = Numbers::new(self.seed, &info.shape);
        let first = info.data_offsets.0 / ELEMENT_BYTES + start;
        out.iter_mut().zip(first..).for_each(|(out, at)| *out = T::from_bf16(numbers.at(at)));
    }
}

/// The numbers of one tensor.
#[derive(Clone, Copy)]
struct Numbers {
    seed: u64,
    middle: f32,
    /// They lie within this much of the middle, evenly.
    spread: f32,
}

impl Numbers {
    fn new(seed: u64, shape: &[usize]) -> Self {
        match shape {
            // Evenly spread over +-sqrt(3 / n) is a variance of 1 / n.
            [.., width] if shape.len() > 1 => Self { seed, middle: 0.0, spread: (3.0 / *width as f32).sqrt() },
            // A norm.
            _ => Self { seed, middle: 1.0, spread: 0.1 },
        }
    }

    /// The number at element `at` of the whole file.
    fn at(&self, at: usize) -> bf16 {
        let bits = split_mix::bits(self.seed, at as u64) >> 40;
        let unit = bits as f32 / (1u32 << 23) as f32 - 1.0;
        bf16::from_f32(self.middle + self.spread * unit)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::weights::{Part, Precision, Weights};

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let shapes = [("a.norm.weight", vec![64]), ("a.weight", vec![48, 64]), ("b.weight", vec![5, 3, 7])];
        let tensors = shapes.into_iter().map(|(name, shape)| (name.to_owned(), shape)).collect();
        RandomCheckpoint { seed: 7, tensors }.describe(folder.path()).unwrap();
        folder
    }

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
    }

    #[test]
    fn made_up_weights_are_what_a_file_of_them_would_hold_whole_or_in_slices() {
        let folder = folder();
        let open = || Weights::open(folder.path(), &Device::Cpu, Precision::CPU).unwrap();
        let parts = [
            Part::whole("a.weight", &[48, 64]),
            Part::slice("a.weight", &[48, 64], 1, 16..32),
            Part::slice("b.weight", &[5, 3, 7], 1, 1..3),
        ];
        let made_up = open();
        RandomCheckpoint::read(folder.path()).unwrap().store(folder.path()).unwrap();
        let stored = open();
        assert_eq!(made_up.totals(), stored.totals());
        for part in parts {
            let [made_up, stored] = [&made_up, &stored].map(|weights| numbers(&weights.stack(std::slice::from_ref(&part)).unwrap()));
            assert_eq!(made_up, stored, "{part:?}");
        }
        assert_eq!(numbers(&made_up.vector(64, "a.norm.weight").unwrap()), numbers(&stored.vector(64, "a.norm.weight").unwrap()));
    }

    #[test]
    fn a_matrix_keeps_the_size_of_what_goes_through_it_and_a_norm_is_about_one() {
        let folder = folder();
        let weights = Weights::open(folder.path(), &Device::Cpu, Precision::CPU).unwrap();
        let matrix = numbers(&weights.get(&[48, 64], "a.weight").unwrap());
        let variance = matrix.iter().map(|x| x * x).sum::<f32>() / matrix.len() as f32;
        assert!((variance * 64.0 - 1.0).abs() < 0.1, "{variance}");
        assert!(matrix.iter().sum::<f32>().abs() / (matrix.len() as f32) < 0.01);
        assert!(numbers(&weights.vector(64, "a.norm.weight").unwrap()).iter().all(|x| (0.89..1.11).contains(x)));
        assert!(weights.get(&[48, 65], "a.weight").unwrap_err().to_string().contains("has the shape [48, 64]"));
    }
}
