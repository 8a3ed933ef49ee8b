//! GPUs as whole devices.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaContext, result, sys};
use candle_core::{CudaDevice, Device, Result, bail};

use super::{Gpu, Launch};
use crate::device::{DeviceMemory, Probe};

/// How many GPUs can be used.
///
/// # Errors
/// Why there is none: no driver, no device.
pub fn count() -> std::result::Result<usize, String> {
    match CudaContext::device_count() {
        Ok(0) => Err("the NVIDIA driver knows no GPU".into()),
        Ok(count) => Ok(count as usize),
        Err(result::DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => {
            Err("no NVIDIA driver found (libcuda.so.1), or it knows no GPU".into())
        }
        Err(error) => Err(format!("the NVIDIA driver answered: {error}")),
    }
}

/// Opens a GPU for the calling thread, with one stream and its kernels loaded.
///
/// # Errors
/// When the driver refuses, or the kernels were not built for this chip.
#[allow(unsafe_code)]
pub fn open(ordinal: usize) -> Result<Device> {
    let device = CudaDevice::new_with_stream(ordinal)?;
    // SAFETY: every tensor of this device is made, used and freed on its one stream, in order.
    unsafe { device.disable_event_tracking() };
    keep_freed_memory(&device)?;
    let device = Device::Cuda(device);
    Gpu::of(&device)?;
    Ok(device)
}

/// Freed memory stays with the process, ready for the next step, instead of going back to the driver each time that the stream is idle.
#[allow(unsafe_code)]
fn keep_freed_memory(device: &CudaDevice) -> Result<()> {
    let mut all = u64::MAX;
    let pool = pool(device)?;
    // SAFETY: the pool is the device's own, and the attribute is a 64-bit number.
    unsafe { sys::cuMemPoolSetAttribute(pool, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, (&raw mut all).cast()) }
        .result()
        .w()
}

#[allow(unsafe_code)]
fn pool(device: &CudaDevice) -> Result<sys::CUmemoryPool> {
    let mut pool = std::ptr::null_mut();
    // SAFETY: writes one pointer.
    unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, device.cuda_stream().context().cu_device()) }.result().w()?;
    Ok(pool)
}

/// The memory of a GPU; `None` for a CPU. Memory that was freed but is kept counts as taken: call [`release_unused`] first.
///
/// # Errors
/// When the driver does not answer.
pub fn memory(device: &Device) -> Result<Option<DeviceMemory>> {
    let Device::Cuda(device) = device else { return Ok(None) };
    let (free, total) = device.cuda_stream().context().mem_get_info().w()?;
    Ok(Some(DeviceMemory { total: total as u64, free: free as u64 }))
}

/// Waits for the device and gives memory that no tensor uses back to it.
///
/// # Errors
/// When the device failed at something that it was asked before.
#[allow(unsafe_code)]
pub fn release_unused(device: &Device) -> Result<()> {
    check(device)?;
    let Device::Cuda(device) = device else { return Ok(()) };
    // SAFETY: the pool is the device's own; what is in use stays.
    unsafe { sys::cuMemPoolTrimTo(pool(device)?, 0) }.result().w()
}

/// Waits until the device has done all that was asked of it.
///
/// # Errors
/// When it failed at any of that; [`probe`] tells whether it can still be used.
pub fn check(device: &Device) -> Result<()> {
    match device {
        Device::Cuda(device) => device.cuda_stream().synchronize().w(),
        _ => Ok(()),
    }
}

/// Lets go of what this thread keeps for the device, its kernels for instance.
pub fn forget(device: &Device) {
    Gpu::forget(device);
}

/// How to learn, on any thread and without waiting, why the device does nothing any more, if that is so: an error that sticks answers every
/// question from then on, also whether an empty stream is done.
///
/// # Errors
/// When the driver refuses a stream for the question.
#[allow(unsafe_code)]
pub fn probe(device: &Device) -> Result<Option<Probe>> {
    let Device::Cuda(device) = device else { return Ok(None) };
    // Of its own: the device's may be capturing, which a question would break off.
    let stream = device.cuda_stream().context().new_stream().w()?;
    Ok(Some(Box::new(move || {
        // Binding passes on what an earlier call left in the context's notes; the stream itself answers below.
        let _ = stream.context().bind_to_thread().or_else(|_| stream.context().bind_to_thread());
        // SAFETY: the stream lives as long as the question.
        match unsafe { sys::cuStreamQuery(stream.cu_stream()) } {
            sys::CUresult::CUDA_SUCCESS | sys::CUresult::CUDA_ERROR_NOT_READY => None,
            error => Some(result::DriverError(error).to_string()),
        }
    })))
}

/// Makes the device fail, as a kernel with an error in it would. For tests.
///
/// # Errors
/// When it has failed already, or is no GPU.
pub fn fail(device: &Device) -> Result<()> {
    let Some(gpu) = Gpu::of(device)? else { bail!("only a GPU can be made to fail") };
    Launch::new(&gpu, "fail_on_purpose").block(1).go()
}
