//! Layer norm with weight and bias.

use super::rms_norm::check_weight;
#[cfg(feature = "cuda")]
use super::rms_norm::rows_and_width;
use crate::cpu::fill_rows;
use crate::cpu::lanes::dispatch;
use crate::cpu::normalize::LayerRow;
use crate::cpu::view::{each_float, f32s, floats};
#[cfg(feature = "cuda")]
use crate::cuda::{Gpu, Launch, suffix};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

/// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` over the last dimension.
///
/// `x` is `[.., H]`, `weight` and `bias` are `[H]`, the result has the shape of `x`. The variance is over H, not H - 1.
///
/// # Errors
/// When weight or bias do not fit the last size of `x`, or a type is not f32 on the CPU (weight and bias may be bf16 or f16).
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    check_weight("layer_norm", x, weight)?;
    check_weight("layer_norm", x, bias)?;
    let (x, weight, bias) = (x.contiguous()?, weight.contiguous()?, bias.contiguous()?);
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(x.device())? {
        return on_gpu(&gpu, &x, &weight, &bias, eps);
    }
    x.apply_op3_no_bwd(&weight, &bias, &LayerNorm { eps })
}

#[cfg(feature = "cuda")]
fn on_gpu(gpu: &Gpu, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    let (rows, width) = rows_and_width(x);
    let out = gpu.empty(x.dims(), x.dtype())?;
    let launch = Launch::new(gpu, format!("layer_norm_{}", suffix("layer_norm", x, &[weight, bias])?)).grid(rows, 1, 1);
    launch.tensor(x)?.tensor(weight)?.tensor(bias)?.arg(eps).arg(width as u32).tensor(&out)?.go()?;
    Ok(out)
}

struct LayerNorm {
    eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = f32s("layer_norm", "x", x, x_layout)?;
        let (weight, bias) = (floats("layer_norm", "weight", weight, weight_layout)?, floats("layer_norm", "bias", bias, bias_layout)?);
        let mut out = vec![0.0; x.len()];
        each_float!(weight, weight => each_float!(bias, bias => {
            let width = weight.len();
            fill_rows(&mut out, width, 3 * width, |row, out| {
                dispatch(LayerRow { x: &x[row * width..(row + 1) * width], weight, bias, eps: self.eps, out });
            });
        }));
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, bits, noise, row_by_row};
    use candle_core::{D, DType};

    fn plain(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
        normed.broadcast_mul(&weight.to_dtype(DType::F32)?)?.broadcast_add(&bias.to_dtype(DType::F32)?)
    }

    #[test]
    fn it_agrees_with_the_plain_form_and_row_by_row() {
        for (rows, h) in [(1, 2), (3, 31), (4, 64), (300, 1000)] {
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let (w, b) = (noise(h, 2).to_dtype(dtype).unwrap(), noise(h, 3).to_dtype(dtype).unwrap());
                let x = noise((rows, h), 1);
                let got = layer_norm(&x, &w, &b, 1e-6).unwrap();
                assert_close(&got, &plain(&x, &w, &b, 1e-6).unwrap(), 2e-5);
                assert_eq!(bits(&got), bits(&row_by_row(&x, |x| layer_norm(x, &w, &b, 1e-6))));
            }
        }
    }

    #[test]
    fn a_bias_of_another_size_is_named() {
        let error = layer_norm(&noise((2, 8), 1), &noise(8, 2), &noise(4, 2), 1e-6).unwrap_err().to_string();
        assert!(error.starts_with("layer_norm: x must be [.., H] and its weight [H], got [2, 8] and [4]"), "{error}");
    }
}
