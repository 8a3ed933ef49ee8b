//! The weights of a checkpoint folder: headers first, then just the slices that this rank needs, straight from their place in the file.

mod file;
mod index;
mod part;
pub mod random;
mod reader;
mod safetensors;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ::safetensors::Dtype;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use neuron_kernels::Staging;

use self::file::WeightsFile;
pub use self::part::Part;
use self::reader::{Found, Reader};
use self::safetensors::{Element, Stored};
use crate::error::LoadError;

/// A checkpoint's tensors under one name prefix. Cloning is cheap; the files stay open until the last clone is gone.
#[derive(Clone, Debug)]
pub struct Weights {
    checkpoint: Arc<Checkpoint>,
    prefix: String,
    device: Device,
    precision: Precision,
    /// Absent where tensors are filled in place.
    staging: Option<Arc<Mutex<Staging>>>,
}

/// The element types of a loaded model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Precision {
    /// Matrices and embedding tables; `None` keeps them as the file stores them.
    pub matrices: Option<DType>,
    /// Norm vectors, biases, activations and the KV cache.
    pub activations: DType,
}

/// What a checkpoint holds, from its headers alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors as stored.
    pub bytes: u64,
    /// The type that most of them are stored in; `None` where that is not one of f32, bf16 and f16.
    pub dtype: Option<DType>,
}

#[derive(Debug)]
struct Checkpoint {
    /// The file that says which tensors exist: the index, or the only weights file.
    source: PathBuf,
    files: Vec<WeightsFile>,
    places: BTreeMap<String, Place>,
    loaded_bytes: AtomicU64,
}

#[derive(Debug)]
struct Place {
    file: usize,
    used: AtomicBool,
}

impl Precision {
    /// Matrices as stored, widened on the fly; everything else in f32.
    pub const CPU: Self = Self { matrices: None, activations: DType::F32 };
}

impl Checkpoint {
    fn totals(&self) -> Totals {
        let (mut totals, mut stored) = (Totals::default(), Vec::<(Dtype, u64)>::new());
        for info in self.places.iter().filter_map(|(name, place)| self.files[place.file].info(name)) {
            let bytes = (info.data_offsets.1 - info.data_offsets.0) as u64;
            totals.parameters += info.shape.iter().product::<usize>() as u64;
            totals.bytes += bytes;
            match stored.iter_mut().find(|(dtype, _)| *dtype == info.dtype) {
                Some((_, sum)) => *sum += bytes,
                None => stored.push((info.dtype, bytes)),
            }
        }
        let most = stored.into_iter().max_by_key(|(_, bytes)| *bytes);
        totals.dtype = most.and_then(|(dtype, _)| Stored::of(dtype)).map(Stored::dtype);
        totals
    }
}

impl Weights {
    /// Opens `model.safetensors` or the files named by `model.safetensors.index.json`; reads headers only. Without either,
    /// `model.random.json` stands for weights that are made up (see [`random`]).
    pub fn open(folder: &Path, device: &Device, precision: Precision) -> Result<Self, LoadError> {
        let checkpoint = Arc::new(index::open(folder)?);
        let staging = Staging::new(device, checkpoint.totals().bytes)?.map(|staging| Arc::new(Mutex::new(staging)));
        Ok(Self { checkpoint, prefix: String::new(), device: device.clone(), precision, staging })
    }

    /// The weights under `prefix.part`.
    pub fn pp(&self, part: impl Display) -> Self {
        Self { prefix: self.path_of(part), ..self.clone() }
    }

    /// Whether the checkpoint has this tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.checkpoint.places.contains_key(&self.path_of(name))
    }

    /// A whole matrix or table.
    pub fn get(&self, shape: &[usize], name: &str) -> Result<Tensor, LoadError> {
        self.stack(&[Part::whole(name, shape)])
    }

    /// Matrices, or slices of them, on top of each other along dimension 0. They must agree in every other dimension.
    pub fn stack(&self, parts: &[Part]) -> Result<Tensor, LoadError> {
        self.read(parts, self.precision.matrices)
    }

    /// A whole norm vector or bias.
    pub fn vector(&self, len: usize, name: &str) -> Result<Tensor, LoadError> {
        self.stack_vectors(&[Part::whole(name, &[len])])
    }

    /// Norm vectors or biases, or slices of them, one after the other.
    pub fn stack_vectors(&self, parts: &[Part]) -> Result<Tensor, LoadError> {
        self.read(parts, Some(self.precision.activations))
    }

    /// Where the tensors go.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The element type of activations and of the KV cache.
    pub fn activations(&self) -> DType {
        self.precision.activations
    }

    /// What the whole checkpoint holds, whatever the prefix.
    pub fn totals(&self) -> Totals {
        self.checkpoint.totals()
    }

    /// Bytes on the device of all tensors read so far.
    pub fn loaded_bytes(&self) -> u64 {
        self.checkpoint.loaded_bytes.load(Ordering::Relaxed)
    }

    /// The tensors of the whole checkpoint that nobody has read so far, in alphabetical order.
    pub fn unread(&self) -> Vec<&str> {
        let unread = |place: &Place| !place.used.load(Ordering::Relaxed);
        self.checkpoint.places.iter().filter(|(_, place)| unread(place)).map(|(name, _)| name.as_str()).collect()
    }

    fn path_of(&self, part: impl Display) -> String {
        if self.prefix.is_empty() { part.to_string() } else { format!("{}.{part}", self.prefix) }
    }

    /// Reads `parts` in the type asked for, or else as stored (in f32 when they are stored in different types).
    fn read(&self, parts: &[Part], dtype: Option<DType>) -> Result<Tensor, LoadError> {
        let found = parts.iter().map(|part| self.find(part)).collect::<Result<Vec<_>, _>>()?;
        let common = found.iter().map(|found| found.stored).reduce(|a, b| if a == b { a } else { Stored::F32 });
        match dtype.or(common.map(Stored::dtype)) {
            Some(DType::F32) => self.assemble::<f32>(&found, parts),
            Some(DType::F16) => self.assemble::<f16>(&found, parts),
            Some(DType::BF16) => self.assemble::<bf16>(&found, parts),
            other => Err(LoadError::Unsupported(format!("weights held as {other:?}; choose f32, f16 or bf16"))),
        }
    }

    fn assemble<T: Element>(&self, found: &[Found], parts: &[Part]) -> Result<Tensor, LoadError> {
        let (mut reader, shape) = (Reader::new(found, parts), stacked_shape(parts));
        let count: usize = shape.iter().product();
        let tensor = match &self.staging {
            Some(staging) => {
                let mut staging = staging.lock().unwrap_or_else(PoisonError::into_inner);
                staging.tensor(&shape, |next: &mut [T]| reader.fill(next))?
            }
            None => {
                let mut elements = T::zeros(count);
                reader.fill(&mut elements)?;
                Tensor::from_vec(elements, shape, &self.device)?
            }
        };
        found.iter().for_each(|found| found.place.used.store(true, Ordering::Relaxed));
        self.checkpoint.loaded_bytes.fetch_add((count * size_of::<T>()) as u64, Ordering::Relaxed);
        Ok(tensor)
    }

    /// The tensor's place, once its shape and element type are known to be right.
    fn find(&self, part: &Part) -> Result<Found<'_>, LoadError> {
        let name = self.path_of(&part.name);
        let error = |file: &Path, what: String| LoadError::Tensor { name: name.clone(), file: file.to_owned(), what };
        let absent = || error(&self.checkpoint.source, "is missing".into());
        let place = self.checkpoint.places.get(&name).ok_or_else(absent)?;
        let file = &self.checkpoint.files[place.file];
        let info = file.info(&name).ok_or_else(absent)?;
        if info.shape != part.shape {
            return Err(error(file.path(), format!("has the shape {:?}, but {:?} was expected", info.shape, part.shape)));
        }
        let unknown = || error(file.path(), format!("is stored as {:?}; only F32, F16 and BF16 can be loaded", info.dtype));
        Ok(Found { place, file, info, stored: Stored::of(info.dtype).ok_or_else(unknown)? })
    }
}

fn stacked_shape(parts: &[Part]) -> Vec<usize> {
    let mut shape = parts.first().map(Part::slice_shape).unwrap_or_default();
    if let [rows, ..] = shape.as_mut_slice() {
        *rows = parts.iter().map(|part| part.slice_shape()[0]).sum();
    }
    shape
}
