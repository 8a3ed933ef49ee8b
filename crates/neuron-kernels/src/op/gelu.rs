//! The two forms of GELU.

use crate::cpu::fill_rows;
use crate::cpu::lanes::{Kernel, Lanes, dispatch};
use crate::cpu::math::{erf, sigmoid};
use crate::cpu::view::f32s;
#[cfg(feature = "cuda")]
use crate::cuda::{Gpu, Launch, suffix};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

/// `x / 2 * (1 + erf(x / √2))`: GELU as it is defined. Any shape.
///
/// # Errors
/// When `x` is not f32 on the CPU.
pub fn gelu_erf(x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(x.device())? {
        return on_gpu(&gpu, "gelu_erf", &x);
    }
    x.apply_op1_no_bwd(&GeluErf)
}

/// `x / 2 * (1 + tanh(√(2/π) (x + 0.044715 x³)))`: the usual approximation. Any shape.
///
/// # Errors
/// When `x` is not f32 on the CPU.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(x.device())? {
        return on_gpu(&gpu, "gelu_tanh", &x);
    }
    x.apply_op1_no_bwd(&GeluTanh)
}

#[cfg(feature = "cuda")]
fn on_gpu(gpu: &Gpu, op: &str, x: &Tensor) -> Result<Tensor> {
    let count = x.elem_count();
    let out = gpu.empty(x.dims(), x.dtype())?;
    let launch = Launch::new(gpu, format!("{op}_{}", suffix(op, x, &[])?)).grid(count.div_ceil(256).min(1 << 16), 1, 1);
    launch.tensor(x)?.arg(count as u64).tensor(&out)?.go()?;
    Ok(out)
}

struct GeluErf;
struct GeluTanh;

impl CustomOp1 for GeluErf {
    fn name(&self) -> &'static str {
        "gelu_erf"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        map("gelu_erf", x, layout, |x| 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)))
    }
}

impl CustomOp1 for GeluTanh {
    fn name(&self) -> &'static str {
        "gelu_tanh"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        // (1 + tanh u) / 2 is the sigmoid of 2u.
        const TWO_SQRT_2_OVER_PI: f32 = 1.595_769;
        map("gelu_tanh", x, layout, |x| x * sigmoid(TWO_SQRT_2_OVER_PI * x * (0.044715 * x).mul_add(x, 1.0)))
    }
}

struct Map<'a, F>(&'a [f32], &'a mut [f32], F);

impl<F: Fn(f32) -> f32> Kernel for Map<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        self.1.iter_mut().zip(self.0).for_each(|(out, x)| *out = self.2(*x));
    }
}

fn map(op: &str, x: &CpuStorage, layout: &Layout, f: impl Fn(f32) -> f32 + Copy + Sync) -> Result<(CpuStorage, Shape)> {
    const WIDTH: usize = 1024;
    let x = f32s(op, "x", x, layout)?;
    let mut out = vec![0.0; x.len()];
    let whole = x.len() / WIDTH * WIDTH;
    let (rows, tail) = out.split_at_mut(whole);
    fill_rows(rows, WIDTH, 8 * WIDTH, |row, out| dispatch(Map(&x[row * WIDTH..], out, f)));
    dispatch(Map(&x[whole..], tail, f));
    Ok((CpuStorage::F32(out), layout.shape().clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, bits, noise, row_by_row};

    #[test]
    fn both_agree_with_candle_and_row_by_row() {
        for shape in [vec![1, 1], vec![3, 5], vec![7, 1000], vec![2, 3, 9], vec![90, 3000]] {
            let x = (noise(shape, 1) * 8.0).unwrap();
            assert_close(&gelu_erf(&x).unwrap(), &x.gelu_erf().unwrap(), 2e-6);
            assert_close(&gelu_tanh(&x).unwrap(), &x.gelu().unwrap(), 1e-6);
            assert_eq!(bits(&gelu_erf(&x).unwrap()), bits(&row_by_row(&x, gelu_erf)));
            assert_eq!(bits(&gelu_tanh(&x).unwrap()), bits(&row_by_row(&x, gelu_tanh)));
        }
    }
}
