//! Root-mean-square norm.

use crate::cpu::fill_rows;
use crate::cpu::lanes::dispatch;
use crate::cpu::normalize::RmsRow;
use crate::cpu::view::{Floats, each_float, f32s, floats};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

/// `x / sqrt(mean(x²) + eps) * weight` over the last dimension.
///
/// `x` is `[.., H]`, `weight` is `[H]` (f32, bf16 or f16), the result has the shape of `x`.
///
/// # Errors
/// When the weight does not fit the last size of `x`, or a type is none of those.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    check_weight("rms_norm", x, weight)?;
    x.contiguous()?.apply_op2_no_bwd(&weight.contiguous()?, &RmsNorm { eps })
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
