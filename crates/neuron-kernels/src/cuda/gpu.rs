//! What a thread knows of a device that it works with: its stream, its kernels, and its memory for results.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr, sys};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaDType, CudaStorageSlice, DeviceId, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Result, Shape, Storage, Tensor, bail};
use half::{bf16, f16};

use super::blas::Blas;
use super::modules::MODULES;
use super::tape::Tape;

/// One device as this thread sees it.
pub(crate) struct Gpu {
    device: CudaDevice,
    pub(crate) stream: Arc<CudaStream>,
    pub(super) blas: RefCell<Blas>,
    pub(super) tape: RefCell<Tape>,
    modules: Vec<Arc<CudaModule>>,
    functions: RefCell<HashMap<String, CudaFunction>>,
    /// Streaming multiprocessors.
    pub(crate) multiprocessors: usize,
    /// Whether a kernel may start while the one before it ends.
    pub(super) overlaps: bool,
    /// Whether this is a Hopper chip and its own kernels were built.
    pub(super) hopper: bool,
    counters: RefCell<Option<Tensor>>,
}

thread_local! {
    static GPUS: RefCell<HashMap<DeviceId, Rc<Gpu>>> = RefCell::default();
}

/// Shared memory that a block may have without asking, together with what its kernel declares by itself.
const SHARED_BYTES_PLAIN: u32 = 48 << 10;

/// Counters that kernels leave at zero; more than blocks of one launch ever use.
const COUNTERS: usize = 1 << 16;

impl Gpu {
    /// The GPU behind a device; `None` for a CPU.
    ///
    /// # Errors
    /// When the kernels cannot be loaded, for instance because they were not built for this chip.
    pub(crate) fn of(device: &Device) -> Result<Option<Rc<Self>>> {
        let Device::Cuda(device) = device else { return Ok(None) };
        if let Some(gpu) = GPUS.with_borrow(|gpus| gpus.get(&device.id()).cloned()) {
            return Ok(Some(gpu));
        }
        let gpu = Rc::new(Self::new(device)?);
        GPUS.with_borrow_mut(|gpus| gpus.insert(device.id(), gpu.clone()));
        Ok(Some(gpu))
    }

    /// Lets go of all that this thread holds of a device.
    pub(crate) fn forget(device: &Device) {
        if let Device::Cuda(device) = device {
            GPUS.with_borrow_mut(|gpus| gpus.remove(&device.id()));
        }
    }

    fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        let context = stream.context();
        let load = |&(name, bytes): &(&str, &[u8])| {
            let module = context.load_module(Ptx::from_binary(bytes.to_vec())).w();
            module.map_err(|error| error.context(format!("the kernels of `{name}` do not load on {}", context.name().unwrap_or_default())))
        };
        let modules = MODULES.iter().map(load).collect::<Result<Vec<_>>>()?;
        let capability = context.compute_capability().w()?;
        let attribute = |attribute| context.attribute(attribute).w();
        Ok(Self {
            multiprocessors: attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
            overlaps: capability.0 >= 9,
            hopper: capability == (9, 0) && modules.iter().any(|module| module.load_function("hopper_attention_bf16_128").is_ok()),
            blas: RefCell::new(Blas::new(&stream)?),
            tape: RefCell::default(),
            functions: RefCell::default(),
            counters: RefCell::default(),
            device: device.clone(),
            modules,
            stream,
        })
    }

    /// The kernel called `name`, allowed as much shared memory as it asks for.
    pub(super) fn function(&self, name: &str, shared_bytes: u32) -> Result<CudaFunction> {
        if let Some(function) = self.functions.borrow().get(name) {
            return Ok(function.clone());
        }
        let Some(function) = self.modules.iter().find_map(|module| module.load_function(name).ok()) else {
            bail!("there is no kernel `{name}`")
        };
        if shared_bytes > SHARED_BYTES_PLAIN / 2 {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(attribute, shared_bytes as i32).w()?;
        }
        self.functions.borrow_mut().insert(name.to_string(), function.clone());
        Ok(function)
    }

    /// A tensor whose elements nobody has written yet.
    pub(crate) fn empty(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        let shape = shape.into();
        if let Some(tensor) = self.tape.borrow_mut().replay(&shape, dtype)? {
            return Ok(tensor);
        }
        let tensor = self.allocate(shape, dtype)?;
        let address = self.address(&tensor)?;
        self.tape.borrow_mut().record(&tensor, address);
        Ok(tensor)
    }

    /// Fresh memory, whatever the tape says.
    pub(super) fn allocate(&self, shape: Shape, dtype: DType) -> Result<Tensor> {
        let count = shape.elem_count();
        let storage = match dtype {
            DType::U32 => self.storage::<u32>(count)?,
            DType::F32 => self.storage::<f32>(count)?,
            DType::BF16 => self.storage::<bf16>(count)?,
            DType::F16 => self.storage::<f16>(count)?,
            _ => bail!("no kernel gives {}", dtype.as_str()),
        };
        Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
    }

    #[allow(unsafe_code)]
    fn storage<T: CudaDType + DeviceRepr>(&self, count: usize) -> Result<CudaStorage> {
        // SAFETY: the memory is written by the kernel that it is made for before anything reads it, in stream order.
        let slice = unsafe { self.device.alloc::<T>(count.max(1))? };
        Ok(CudaStorage::wrap_cuda_slice(slice, self.device.clone()))
    }

    /// Where a contiguous tensor begins on this device.
    pub(crate) fn address(&self, tensor: &Tensor) -> Result<u64> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { bail!("a tensor of shape {:?} is not on the GPU", tensor.dims()) };
        if !layout.is_contiguous() {
            bail!("a tensor of shape {:?} is not contiguous", tensor.dims());
        }
        let start = (layout.start_offset() * storage_dtype(storage).size_in_bytes()) as u64;
        Ok(start
            + match &storage.slice {
                CudaStorageSlice::U8(slice) => self.base(slice),
                CudaStorageSlice::U32(slice) => self.base(slice),
                CudaStorageSlice::I64(slice) => self.base(slice),
                CudaStorageSlice::F32(slice) => self.base(slice),
                CudaStorageSlice::BF16(slice) => self.base(slice),
                CudaStorageSlice::F16(slice) => self.base(slice),
                _ => bail!("no kernel takes {}", tensor.dtype().as_str()),
            })
    }

    fn base<T>(&self, slice: &CudaSlice<T>) -> u64 {
        slice.device_ptr(&self.stream).0
    }

    /// Zeros for kernels that count finished blocks and leave zeros behind.
    pub(crate) fn counters(&self) -> Result<Tensor> {
        let mut counters = self.counters.borrow_mut();
        if counters.is_none() {
            *counters = Some(Tensor::zeros(COUNTERS, DType::U32, &Device::Cuda(self.device.clone()))?);
        }
        match &*counters {
            Some(counters) => Ok(counters.clone()),
            None => bail!("the counters were just made"),
        }
    }
}

fn storage_dtype(storage: &CudaStorage) -> DType {
    candle_core::backend::BackendStorage::dtype(storage)
}

/// How a kernel's name says its element type, which the other operands must share.
pub(crate) fn suffix(op: &str, tensor: &Tensor, others: &[&Tensor]) -> Result<&'static str> {
    if let Some(other) = others.iter().find(|other| other.dtype() != tensor.dtype()) {
        bail!("{op}: on a GPU all operands have one type, got {} and {}", tensor.dtype().as_str(), other.dtype().as_str());
    }
    match tensor.dtype() {
        DType::F32 => Ok("f32"),
        DType::BF16 => Ok("bf16"),
        DType::F16 => Ok("f16"),
        other => bail!("{op}: no kernel for {}", other.as_str()),
    }
}
