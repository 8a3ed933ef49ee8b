//! The residual addition and the norm that follows it, in one pass over memory.

use super::rms_norm::{check_weight, rms_norm_rows};
#[cfg(feature = "cuda")]
use super::rms_norm::{row_form, rows_and_width};
use crate::cpu::view::{f32s, floats};
#[cfg(feature = "cuda")]
use crate::cuda::{Gpu, Launch, suffix};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

/// Adds `x` to the residual stream and normalises the sum.
///
/// `x` and `residual` are `[.., H]`, `weight` is `[H]`. Gives the normed rows and `x + residual`, both shaped as `x`; on the CPU they
/// are views of one allocation.
///
/// # Errors
/// When the shapes differ, or a type is not f32 on the CPU (the weight may be bf16 or f16).
pub fn add_rms_norm(x: &Tensor, residual: &Tensor, weight: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    if x.dims() != residual.dims() {
        bail!("add_rms_norm: x {:?} and residual {:?} must have one shape", x.dims(), residual.dims());
    }
    check_weight("add_rms_norm", x, weight)?;
    let (x, residual, weight) = (x.contiguous()?, residual.contiguous()?, weight.contiguous()?);
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(x.device())? {
        return on_gpu(&gpu, &x, &residual, &weight, eps);
    }
    let both = x.apply_op3_no_bwd(&residual, &weight, &AddRmsNorm { eps })?;
    Ok((both.get(0)?, both.get(1)?))
}

#[cfg(feature = "cuda")]
fn on_gpu(gpu: &Gpu, x: &Tensor, residual: &Tensor, weight: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    let (rows, width) = rows_and_width(x);
    let (sum, normed) = (gpu.empty(x.dims(), x.dtype())?, gpu.empty(x.dims(), x.dtype())?);
    let (form, threads) = row_form(width);
    let name = format!("add_rms_norm{form}_{}", suffix("add_rms_norm", x, &[residual, weight])?);
    let launch = Launch::new(gpu, name).grid(rows, 1, 1).block(threads).tensor(x)?.tensor(residual)?.tensor(weight)?;
    launch.arg(eps).arg(width as u32).tensor(&sum)?.tensor(&normed)?.go()?;
    Ok((normed, sum))
}

/// Gives `[2, .., H]`: the normed rows, then the sums.
struct AddRmsNorm {
    eps: f32,
}

impl CustomOp3 for AddRmsNorm {
    fn name(&self) -> &'static str {
        "add_rms_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = f32s("add_rms_norm", "x", x, x_layout)?;
        let residual = f32s("add_rms_norm", "residual", residual, residual_layout)?;
        let weight = floats("add_rms_norm", "weight", weight, weight_layout)?;
        let mut both = vec![0.0; 2 * x.len()];
        let (normed, sums) = both.split_at_mut(x.len());
        for ((sum, x), residual) in sums.iter_mut().zip(x).zip(residual) {
            *sum = x + residual;
        }
        rms_norm_rows(sums, weight, self.eps, normed);
        let dims: Vec<usize> = std::iter::once(2).chain(x_layout.dims().iter().copied()).collect();
        Ok((CpuStorage::F32(both), Shape::from(dims)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rms_norm;
    use crate::testing::{bits, noise};

    #[test]
    fn it_is_the_sum_and_its_norm() {
        for shape in [vec![1, 8], vec![5, 33], vec![2, 3, 64], vec![200, 512]] {
            let h = shape[shape.len() - 1];
            let (x, residual, w) = (noise(shape.clone(), 1), noise(shape, 2), noise(h, 3));
            let (normed, sum) = add_rms_norm(&x, &residual, &w, 1e-6).unwrap();
            let plain = (&x + &residual).unwrap();
            assert_eq!(bits(&sum), bits(&plain));
            assert_eq!(bits(&normed), bits(&rms_norm(&plain, &w, 1e-6).unwrap()));
            assert!(normed.is_contiguous() && sum.is_contiguous());
        }
    }

    #[test]
    fn shapes_that_differ_are_named() {
        let error = add_rms_norm(&noise((2, 8), 1), &noise((3, 8), 1), &noise(8, 2), 1e-6).unwrap_err().to_string();
        assert!(error.starts_with("add_rms_norm: x [2, 8] and residual [3, 8] must have one shape"), "{error}");
    }
}
