//! Columns that several ranks computed, as rows of the whole.

#[cfg(feature = "cuda")]
use crate::cuda::{Gpu, Launch};
use candle_core::{Result, Tensor, bail};

/// Parts that lie one after the other, laid side by side: `[W, R, C]` to `[R, W C]`.
///
/// # Errors
/// When `parts` has another shape.
pub fn interleave(parts: &Tensor) -> Result<Tensor> {
    let [count, rows, columns] = *parts.dims() else { bail!("interleave: parts must be [W, R, C], got {:?}", parts.dims()) };
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(parts.device())? {
        let out = gpu.empty((rows, count * columns), parts.dtype())?;
        let blocks = (count * rows * columns).div_ceil(4 * 256).min(1 << 16);
        let launch = Launch::new(&gpu, format!("interleave_{}", parts.dtype().size_in_bytes())).grid(blocks, 1, 1);
        launch.tensor(parts)?.arg(count as u32).arg(rows as u32).arg(columns as u32).tensor(&out)?.go()?;
        return Ok(out);
    }
    parts.transpose(0, 1)?.contiguous()?.reshape((rows, count * columns))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn parts_come_to_lie_side_by_side() {
        let parts = Tensor::arange(0u32, 12, &Device::Cpu).unwrap().reshape((3, 2, 2)).unwrap();
        let rows = interleave(&parts).unwrap().to_vec2::<u32>().unwrap();
        assert_eq!(rows, [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]);
        assert!(interleave(&parts.flatten_all().unwrap()).is_err());
    }
}
