//! What a device can do at best, seen with large plain operations: the yardstick of a measurement in the same run.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};

/// Of one device, now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeviceLimits {
    /// Bytes per second of a large copy, reads and writes together.
    pub copy_bytes_per_s: f64,
    /// Floating-point operations per second of a large matrix product, a multiplication and an addition being two.
    pub matmul_flop_per_s: f64,
}

/// Each is the best of this many.
const ROUNDS: usize = 5;

/// How large the operations are.
struct Sizes {
    copy_bytes: usize,
    /// Copies at the same time: one processor does not fill a host's memory bus.
    lanes: usize,
    matrix: usize,
    dtype: DType,
}

impl Sizes {
    fn of(device: &Device) -> Self {
        if device.is_cpu() {
            let lanes = std::thread::available_parallelism().map_or(1, usize::from);
            Self { copy_bytes: 256 << 20, lanes, matrix: 1024, dtype: DType::F32 }
        } else {
            Self { copy_bytes: 2 << 30, lanes: 1, matrix: 8192, dtype: DType::BF16 }
        }
    }
}

/// Measures. Takes a second or two, and memory for a moment.
pub fn measure(device: &Device) -> Result<DeviceLimits> {
    let sizes = Sizes::of(device);
    Ok(DeviceLimits { copy_bytes_per_s: copy(device, &sizes)?, matmul_flop_per_s: matmul(device, &sizes)? })
}

fn copy(device: &Device, sizes: &Sizes) -> Result<f64> {
    let each = sizes.copy_bytes / sizes.lanes / size_of::<f32>();
    let pair = |_| Ok((Tensor::ones(each, DType::F32, device)?, Tensor::zeros(each, DType::F32, device)?));
    let pairs = (0..sizes.lanes).map(pair).collect::<Result<Vec<_>>>()?;
    let copy_all = || match pairs.as_slice() {
        // A device with a current thread keeps it.
        [(from, to)] if device.is_cpu() => to.slice_set(from, 0, 0),
        // Freed at once, so that each round gets the same memory.
        [(from, _)] => from.copy().map(drop),
        pairs => std::thread::scope(|scope| {
            let lanes: Vec<_> = pairs.iter().map(|(from, to)| scope.spawn(move || to.slice_set(from, 0, 0))).collect();
            lanes.into_iter().try_for_each(|lane| lane.join().unwrap_or_else(|_| candle_core::bail!("a copy panicked")))
        }),
    };
    let seconds = best(device, copy_all)?;
    Ok((2 * each * size_of::<f32>() * sizes.lanes) as f64 / seconds)
}

fn matmul(device: &Device, sizes: &Sizes) -> Result<f64> {
    let n = sizes.matrix;
    let matrix = || Tensor::rand(-1f32, 1f32, (n, n), device)?.to_dtype(sizes.dtype);
    let (a, b) = (matrix()?, matrix()?);
    let seconds = best(device, || a.matmul(&b).map(drop))?;
    Ok(2.0 * (n as f64).powi(3) / seconds)
}

/// Seconds of the fastest round; the first one warms up.
fn best(device: &Device, work: impl Fn() -> Result<()>) -> Result<f64> {
    work()?;
    device.synchronize()?;
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        work()?;
        device.synchronize()?;
        best = best.min(started.elapsed().as_secs_f64());
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_are_found() {
        let sizes = Sizes { copy_bytes: 1 << 16, lanes: 2, matrix: 16, dtype: DType::F32 };
        let found = (copy(&Device::Cpu, &sizes).unwrap(), matmul(&Device::Cpu, &sizes).unwrap());
        assert!(found.0.is_finite() && found.0 > 0.0 && found.1.is_finite() && found.1 > 0.0, "{found:?}");
    }
}
