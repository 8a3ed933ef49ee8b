//! A candle storage seen as the slice that its layout covers.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Layout, Result, bail};
use half::{bf16, f16};

/// A slice of floats of one of the types that weights may be held in.
#[derive(Clone, Copy)]
pub(crate) enum Floats<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
}

/// Runs an expression with the slice inside a [`Floats`], whatever its type.
macro_rules! each_float {
    ($floats:expr, $slice:ident => $body:expr) => {
        match $floats {
            $crate::cpu::view::Floats::F32($slice) => $body,
            $crate::cpu::view::Floats::Bf16($slice) => $body,
            $crate::cpu::view::Floats::F16($slice) => $body,
        }
    };
}
pub(crate) use each_float;

/// The f32 elements of an operand.
pub(crate) fn f32s<'a>(op: &str, operand: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match storage {
        CpuStorage::F32(data) => window(op, operand, data, layout),
        _ => bail!("{op}: {operand} must be f32 on the CPU, got {}", name(storage)),
    }
}

/// The u32 elements of an operand.
pub(crate) fn u32s<'a>(op: &str, operand: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [u32]> {
    match storage {
        CpuStorage::U32(data) => window(op, operand, data, layout),
        _ => bail!("{op}: {operand} must be u32, got {}", name(storage)),
    }
}

/// The elements of an operand that may be held in f32, bf16 or f16.
pub(crate) fn floats<'a>(op: &str, operand: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<Floats<'a>> {
    Ok(match storage {
        CpuStorage::F32(data) => Floats::F32(window(op, operand, data, layout)?),
        CpuStorage::BF16(data) => Floats::Bf16(window(op, operand, data, layout)?),
        CpuStorage::F16(data) => Floats::F16(window(op, operand, data, layout)?),
        _ => bail!("{op}: {operand} must be f32, bf16 or f16, got {}", name(storage)),
    })
}

/// The range of storage elements under a contiguous layout.
pub(crate) fn span(op: &str, operand: &str, layout: &Layout) -> Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("{op}: {operand} of shape {:?} must be contiguous, its strides are {:?}", layout.dims(), layout.stride()),
    }
}

fn window<'a, T>(op: &str, operand: &str, data: &'a [T], layout: &Layout) -> Result<&'a [T]> {
    Ok(&data[span(op, operand, layout)?])
}

fn name(storage: &CpuStorage) -> &'static str {
    storage.dtype().as_str()
}
