//! The gate of a SwiGLU feed-forward.

use crate::cpu::fill_rows;
use crate::cpu::lanes::{Kernel, Lanes, dispatch};
use crate::cpu::math::sigmoid;
use crate::cpu::view::f32s;
#[cfg(feature = "cuda")]
use crate::cuda::{Gpu, Launch, suffix};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

/// `silu(gate) * up` where each row holds the gate, then the up projection.
///
/// `gate_up` is `[T, 2I]`, the result `[T, I]`.
///
/// # Errors
/// When `gate_up` is not that, or not f32 on the CPU.
pub fn silu_mul(gate_up: &Tensor) -> Result<Tensor> {
    if !matches!(gate_up.dims(), [_, width] if width % 2 == 0) {
        bail!("silu_mul: gate_up must be [T, 2I], got {:?}", gate_up.dims());
    }
    let gate_up = gate_up.contiguous()?;
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(gate_up.device())? {
        return on_gpu(&gpu, &gate_up);
    }
    gate_up.apply_op1_no_bwd(&SiluMul)
}

#[cfg(feature = "cuda")]
fn on_gpu(gpu: &Gpu, gate_up: &Tensor) -> Result<Tensor> {
    let (rows, width) = (gate_up.dim(0)?, gate_up.dim(1)? / 2);
    let out = gpu.empty((rows, width), gate_up.dtype())?;
    let blocks = (rows * width / 8).div_ceil(256).clamp(1, 1 << 16);
    let launch = Launch::new(gpu, format!("silu_mul_{}", suffix("silu_mul", gate_up, &[])?)).grid(blocks, 1, 1);
    launch.tensor(gate_up)?.arg(width as u32).arg((rows * width) as u64).tensor(&out)?.go()?;
    Ok(out)
}

struct SiluMul;

impl CustomOp1 for SiluMul {
    fn name(&self) -> &'static str {
        "silu_mul"
    }

    fn cpu_fwd(&self, gate_up: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let mut out = vec![0.0; rows * width / 2];
        silu_mul_rows(f32s("silu_mul", "gate_up", gate_up, layout)?, width / 2, &mut out);
        Ok((CpuStorage::F32(out), Shape::from((rows, width / 2))))
    }
}

/// Gates each row of `gate_up`, `[rows, 2 * width]`, into `out`, `[rows, width]`.
pub(crate) fn silu_mul_rows(gate_up: &[f32], width: usize, out: &mut [f32]) {
    fill_rows(out, width, 8 * width, |row, out| {
        let (gate, up) = gate_up[2 * row * width..2 * (row + 1) * width].split_at(width);
        dispatch(Row { gate, up, out });
    });
}

struct Row<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        for ((out, gate), up) in self.out.iter_mut().zip(self.gate).zip(self.up) {
            *out = gate * sigmoid(*gate) * up;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, bits, noise, row_by_row};

    fn plain(gate_up: &Tensor) -> Result<Tensor> {
        let width = gate_up.dim(1)? / 2;
        gate_up.narrow(1, 0, width)?.silu()? * gate_up.narrow(1, width, width)?
    }

    #[test]
    fn it_agrees_with_the_plain_form_and_row_by_row() {
        for (rows, width) in [(1, 1), (3, 5), (9, 512), (100, 777)] {
            let x = (noise((rows, 2 * width), 1) * 12.0).unwrap();
            let got = silu_mul(&x).unwrap();
            assert_close(&got, &plain(&x).unwrap(), 2e-6);
            assert_eq!(bits(&got), bits(&row_by_row(&x, silu_mul)));
        }
    }

    #[test]
    fn an_odd_width_is_named() {
        let error = silu_mul(&noise((2, 5), 1)).unwrap_err().to_string();
        assert!(error.starts_with("silu_mul: gate_up must be [T, 2I], got [2, 5]"), "{error}");
    }
}
