//! Root-mean-square norm.

use crate::cpu::fill_rows;
use crate::cpu::lanes::dispatch;
use crate::cpu::normalize::RmsRow;
use crate::cpu::view::{Floats, each_float, f32s, floats};
#[cfg(feature = "cuda")]
use crate::cuda::{Gpu, Launch, suffix};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

/// `x / sqrt(mean(x²) + eps) * weight` over the last dimension.
///
/// `x` is `[.., H]`, `weight` is `[H]` (f32, bf16 or f16), the result has the shape of `x`.
///
/// # Errors
/// When the weight does not fit the last size of `x`, or a type is none of those.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    check_weight("rms_norm", x, weight)?;
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(x.device())? {
        return on_gpu(&gpu, &x, &weight, eps);
    }
    x.apply_op2_no_bwd(&weight, &RmsNorm { eps })
}

#[cfg(feature = "cuda")]
fn on_gpu(gpu: &Gpu, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let (rows, width) = rows_and_width(x);
    let normed = gpu.empty(x.dims(), x.dtype())?;
    let (form, threads) = row_form(width);
    let launch = Launch::new(gpu, format!("rms_norm{form}_{}", suffix("rms_norm", x, &[weight])?)).grid(rows, 1, 1).block(threads);
    launch.tensor(x)?.tensor(weight)?.arg(eps).arg(width as u32).tensor(&normed)?.go()?;
    Ok(normed)
}

/// Rows and their width, over the last dimension.
#[cfg(feature = "cuda")]
pub(crate) fn rows_and_width(x: &Tensor) -> (usize, usize) {
    let width = x.dims().last().copied().unwrap_or(1);
    (x.elem_count().checked_div(width).unwrap_or(0), width)
}

/// Which form of a norm suits a row, and how many threads: rows that are whole groups of eight stay in registers, up to four groups a
/// thread.
#[cfg(feature = "cuda")]
pub(crate) fn row_form(width: usize) -> (&'static str, usize) {
    const GROUP: usize = 8;
    const TURNS: usize = 4;
    match width.is_multiple_of(GROUP) && width <= GROUP * TURNS * 1024 {
        true => ("", (width / GROUP).div_ceil(if width > GROUP * 512 { TURNS } else { 1 }).next_multiple_of(32).min(1024)),
        false => ("_any", 256),
    }
}

/// Holds a `[H]` operand against the last size of `x`.
pub(crate) fn check_weight(op: &str, x: &Tensor, weight: &Tensor) -> Result<()> {
    match x.dims().last() {
        Some(h) if weight.dims() == [*h] => Ok(()),
        _ => bail!("{op}: x must be [.., H] and its weight [H], got {:?} and {:?}", x.dims(), weight.dims()),
    }
}

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, w: &CpuStorage, w_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32s("rms_norm", "x", x, x_layout)?;
        let mut out = vec![0.0; x.len()];
        rms_norm_rows(x, floats("rms_norm", "weight", w, w_layout)?, self.eps, &mut out);
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

/// Normalises each row of `x` into `out`, both `[rows, H]`.
pub(crate) fn rms_norm_rows(x: &[f32], weight: Floats<'_>, eps: f32, out: &mut [f32]) {
    each_float!(weight, weight => {
        let width = weight.len();
        fill_rows(out, width, 2 * width, |row, out| {
            dispatch(RmsRow { x: &x[row * width..(row + 1) * width], weight, eps, out });
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, bits, noise, row_by_row};
    use candle_core::{D, DType};

    fn plain(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
        let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
        x.broadcast_div(&(mean + eps)?.sqrt()?)?.broadcast_mul(&weight.to_dtype(DType::F32)?)
    }

    #[test]
    fn it_agrees_with_the_plain_form_and_row_by_row() {
        for (rows, h) in [(1, 1), (2, 7), (5, 128), (300, 1000)] {
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let (x, w) = (noise((rows, h), 1), noise(h, 2).to_dtype(dtype).unwrap());
                let got = rms_norm(&x, &w, 1e-6).unwrap();
                assert_close(&got, &plain(&x, &w, 1e-6).unwrap(), 1e-5);
                assert_eq!(bits(&got), bits(&row_by_row(&x, |x| rms_norm(x, &w, 1e-6))));
            }
        }
    }

    #[test]
    fn heads_are_normalised_one_by_one() {
        let (x, w) = (noise((3, 4, 16), 1), noise(16, 2));
        assert_close(&rms_norm(&x, &w, 1e-6).unwrap(), &plain(&x, &w, 1e-6).unwrap(), 1e-5);
        let turned = x.transpose(0, 1).unwrap();
        assert_close(&rms_norm(&turned, &w, 1e-6).unwrap(), &plain(&turned, &w, 1e-6).unwrap(), 1e-5);
    }

    #[test]
    fn a_weight_of_another_size_is_named() {
        let error = rms_norm(&noise((2, 8), 1), &noise(4, 2), 1e-6).unwrap_err().to_string();
        assert!(error.starts_with("rms_norm: x must be [.., H] and its weight [H], got [2, 8] and [4]"), "{error}");
    }
}
