//! NCCL: the ranks of a model on several GPUs of one host. Each operation is a kernel on the stream of the rank's GPU, also inside a
//! captured step, and all ranks call the same ones in the same order.
//! <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/>

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Result, Tensor, bail};
use cudarc::nccl::result::{self, NcclError};
use cudarc::nccl::sys;

use super::Gpu;

/// Where the ranks of one model find each other.
#[derive(Clone, Copy, Debug)]
pub struct Meeting(sys::ncclUniqueId);

impl Meeting {
    /// A new one.
    ///
    /// # Errors
    /// When NCCL is not there.
    pub fn new() -> Result<Self> {
        result::get_uniqueid().map(Self).map_err(|error| said("NCCL (libnccl.so.2) cannot be used", &error))
    }
}

/// One rank's way to the others. Any thread may abort it; everything else happens on the thread of its device.
#[derive(Debug)]
pub struct Communicator {
    /// `None` once aborted. Held while an operation is queued, so that none uses what was freed.
    handle: Mutex<Option<Handle>>,
    world_size: usize,
}

#[derive(Clone, Copy, Debug)]
struct Handle(sys::ncclComm_t);

// SAFETY: NCCL allows the abort of a communicator from another thread, and the mutex keeps it away from operations.
#[allow(unsafe_code)]
unsafe impl Send for Handle {}

impl Communicator {
    /// Waits until all `world_size` ranks have called this, each on the thread of its device.
    ///
    /// # Errors
    /// When the device is no GPU, or NCCL finds no way between them.
    #[allow(unsafe_code)]
    pub fn join(meeting: Meeting, rank: usize, world_size: usize, device: &Device) -> Result<Self> {
        let Some(gpu) = Gpu::of(device)? else { bail!("NCCL joins GPUs only") };
        gpu.stream.context().bind_to_thread().map_err(candle_core::Error::wrap)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one handle; the context of the rank's device is current.
        unsafe { result::comm_init_rank(&raw mut handle, world_size as i32, meeting.0, rank as i32) }
            .map_err(|error| said("the GPUs cannot be joined", &error))?;
        Ok(Self { handle: Mutex::new(Some(Handle(handle))), world_size })
    }

    /// The sum of all ranks' `x`, the same bits on each of them.
    ///
    /// # Errors
    /// When the ranks were parted, or `x` is not contiguous.
    #[allow(unsafe_code)]
    pub fn all_reduce_sum(&self, x: &Tensor) -> Result<Tensor> {
        self.queue(x, x.dims(), |handle, from, to, count, dtype, stream| {
            // SAFETY: both hold `count` elements of `dtype`, and memory is freed in stream order, behind this operation.
            unsafe { sys::ncclAllReduce(from as *const _, to as *mut _, count, dtype, sys::ncclRedOp_t::ncclSum, handle, stream) }
        })
    }

    /// All ranks' `x` one after the other, in rank order: `[W, ..]`.
    ///
    /// # Errors
    /// When the ranks were parted, or `x` is not contiguous.
    #[allow(unsafe_code)]
    pub fn all_gather(&self, x: &Tensor) -> Result<Tensor> {
        let shape: Vec<usize> = std::iter::once(self.world_size).chain(x.dims().iter().copied()).collect();
        self.queue(x, &shape, |handle, from, to, count, dtype, stream| {
            // SAFETY: `from` holds `count` elements of `dtype` and `to` as many for each rank; memory is freed in stream order.
            unsafe { sys::ncclAllGather(from as *const _, to as *mut _, count, dtype, handle, stream) }
        })
    }

    /// Parts this rank from the others: an operation that waits for them ends, and none can follow.
    #[allow(unsafe_code)]
    pub fn abort(&self) {
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Handle(handle)) = handle {
            // SAFETY: nobody has the handle any more. There is nothing to do about an error: the ranks are parted either way.
            let _ = unsafe { result::comm_abort(handle) };
        }
    }

    /// Whether it was.
    pub fn is_aborted(&self) -> bool {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    fn queue(
        &self,
        x: &Tensor,
        shape: &[usize],
        operation: impl FnOnce(sys::ncclComm_t, u64, u64, usize, sys::ncclDataType_t, sys::cudaStream_t) -> sys::ncclResult_t,
    ) -> Result<Tensor> {
        let Some(gpu) = Gpu::of(x.device())? else { bail!("NCCL joins GPUs only") };
        let dtype = match x.dtype() {
            DType::F32 => sys::ncclDataType_t::ncclFloat32,
            DType::BF16 => sys::ncclDataType_t::ncclBfloat16,
            DType::F16 => sys::ncclDataType_t::ncclFloat16,
            DType::U32 => sys::ncclDataType_t::ncclUint32,
            other => bail!("NCCL is not asked for {}", other.as_str()),
        };
        let out = gpu.empty(shape, x.dtype())?;
        let (from, to) = (gpu.address(x)?, gpu.address(&out)?);
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Handle(handle)) = *handle else { bail!("another rank failed in this step; reload the model") };
        {
            let mut tape = gpu.tape.borrow_mut();
            tape.used(from);
            tape.used(to);
            tape.launched();
        }
        let status = operation(handle, from, to, x.elem_count(), dtype, gpu.stream.cu_stream().cast());
        status.result().map_err(|error| said("the ranks cannot meet", &error))?;
        Ok(out)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // Unlike a polite goodbye, this waits for nobody.
        self.abort();
    }
}

fn said(what: &str, error: &NcclError) -> candle_core::Error {
    candle_core::Error::msg(format!("{what}: {:?}", error.0))
}
