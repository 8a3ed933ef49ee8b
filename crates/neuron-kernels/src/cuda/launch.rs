//! One kernel launch: a name, a grid, and arguments in the kernel's order.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::sys;
use candle_core::{DType, Result, Tensor, bail};

use super::Gpu;

/// More than any kernel takes.
const ARGS_MAX: usize = 32;

/// A launch under construction.
pub(crate) struct Launch<'a> {
    gpu: &'a Gpu,
    name: String,
    grid: [u32; 3],
    block: u32,
    shared_bytes: u32,
    args: [u64; ARGS_MAX],
    count: usize,
}

/// What a kernel takes by value: its bytes at the front of a word.
pub(crate) trait Scalar {
    fn word(self) -> u64;
}

impl Scalar for u32 {
    fn word(self) -> u64 {
        self.into()
    }
}

impl Scalar for u64 {
    fn word(self) -> u64 {
        self
    }
}

impl Scalar for f32 {
    fn word(self) -> u64 {
        self.to_bits().into()
    }
}

impl<'a> Launch<'a> {
    /// Of the kernel called `name`, with one block of 256 threads until told otherwise.
    pub(crate) fn new(gpu: &'a Gpu, name: impl Into<String>) -> Self {
        Self { gpu, name: name.into(), grid: [1; 3], block: 256, shared_bytes: 0, args: [0; ARGS_MAX], count: 0 }
    }

    /// Blocks along x, y and z.
    pub(crate) fn grid(self, x: usize, y: usize, z: usize) -> Self {
        Self { grid: [x as u32, y as u32, z as u32], ..self }
    }

    /// Threads of a block.
    pub(crate) fn block(self, threads: usize) -> Self {
        Self { block: threads as u32, ..self }
    }

    /// Shared memory of a block beyond what the kernel declares.
    pub(crate) fn shared(self, bytes: usize) -> Self {
        Self { shared_bytes: bytes as u32, ..self }
    }

    /// A contiguous tensor, as the address of its first element.
    pub(crate) fn tensor(self, tensor: &Tensor) -> Result<Self> {
        let address = self.gpu.address(tensor)?;
        self.gpu.tape.borrow_mut().used(address);
        Ok(self.arg(address))
    }

    /// A contiguous tensor of f32.
    pub(crate) fn floats(self, tensor: &Tensor) -> Result<Self> {
        match tensor.dtype() {
            DType::F32 => self.tensor(tensor),
            other => bail!("kernel {} takes f32, got {}", self.name, other.as_str()),
        }
    }

    /// A tensor that may be absent: a null pointer.
    pub(crate) fn optional(self, tensor: Option<&Tensor>) -> Result<Self> {
        match tensor {
            Some(tensor) => self.tensor(tensor),
            None => Ok(self.arg(0u64)),
        }
    }

    /// A number, in the type that the kernel declares.
    pub(crate) fn arg(mut self, value: impl Scalar) -> Self {
        self.args[self.count] = value.word();
        self.count += 1;
        self
    }

    /// Queues the kernel on the device's stream. A grid without blocks is no launch.
    #[allow(unsafe_code)]
    pub(crate) fn go(mut self) -> Result<()> {
        if self.grid.contains(&0) {
            return Ok(());
        }
        let function = self.gpu.function(&self.name, self.shared_bytes)?;
        let mut params = self.args.each_mut().map(|arg| std::ptr::from_mut(arg).cast());
        let mut overlap = overlap_attribute();
        let config = sys::CUlaunchConfig {
            gridDimX: self.grid[0],
            gridDimY: self.grid[1],
            gridDimZ: self.grid[2],
            blockDimX: self.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared_bytes,
            hStream: self.gpu.stream.cu_stream(),
            attrs: &raw mut overlap,
            numAttrs: self.gpu.overlaps.into(),
        };
        self.gpu.tape.borrow_mut().launched();
        // SAFETY: the arguments are those of this kernel, in its order (see the module's comment); each tensor among them holds at
        // least the elements that the op checked, and memory is freed in stream order, behind this launch.
        let status = unsafe { sys::cuLaunchKernelEx(&raw const config, function.cu_function(), params.as_mut_ptr(), std::ptr::null_mut()) };
        status.result().w().map_err(|error| error.context(format!("kernel {} on a grid of {:?}", self.name, self.grid)))
    }
}

/// Lets the kernel start while the one before it ends (programmatic dependent launch). Every kernel here waits by itself.
#[allow(unsafe_code)]
fn overlap_attribute() -> sys::CUlaunchAttribute {
    // SAFETY: a C struct of numbers, for which zero is a valid value.
    let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
    attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attribute.value.programmaticStreamSerializationAllowed = 1;
    attribute
}
