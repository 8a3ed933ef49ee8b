//! `x · wᵀ + bias`, the product behind every projection.

use super::silu_mul::silu_mul;
use crate::cpu::matmul::{Dims, matmul_nt};
use crate::cpu::view::{each_float, f32s, floats};
#[cfg(feature = "cuda")]
use crate::cuda::{Gpu, Product, gemv, suffix};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

/// Multiplies rows by a weight that is stored output by output.
///
/// `x` is `[T, K]`, `w` is `[N, K]`, `bias` is `[N]`, the result `[T, N]`. On the CPU `x` is f32 and the weight f32, bf16 or f16,
/// widened as it is read; a row of the result has the same bits for any T.
///
/// # Errors
/// When the shapes do not fit together, or a type is none of those.
pub fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    product(x, w, bias, x.dtype())
}

/// The same in f32, whatever the type of `x`: for logits.
///
/// # Errors
/// As [`linear`].
pub fn linear_f32(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    product(x, w, None, DType::F32)
}

/// The gated product of a feed-forward block: `silu(x · gateᵀ) * (x · upᵀ)`.
///
/// `x` is `[T, K]`, `gate_up` is `[2I, K]` with the gate above, `bias` is `[2I]`, the result `[T, I]`.
///
/// # Errors
/// As [`linear`] and [`silu_mul`].
pub fn gated_linear(x: &Tensor, gate_up: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let (Some(gpu), None, Ok((rows, k)), Ok((both, w_k))) = (Gpu::of(x.device())?, bias, x.dims2(), gate_up.dims2())
        && k == w_k
        && both.is_multiple_of(2)
        && gemv::suits(rows, k)
    {
        return gemv::gated(&gpu, &x.contiguous()?, &gate_up.contiguous()?);
    }
    silu_mul(&linear(x, gate_up, bias)?)
}

fn product(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, to: DType) -> Result<Tensor> {
    check(x, w, bias)?;
    let (x, w, bias) = (x.contiguous()?, w.contiguous()?, bias.map(Tensor::contiguous).transpose()?);
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(x.device())? {
        return on_gpu(&gpu, &x, &w, bias.as_ref(), to);
    }
    match bias {
        None => x.apply_op2_no_bwd(&w, &Linear),
        Some(bias) => x.apply_op3_no_bwd(&w, &bias, &Linear),
    }?
    .to_dtype(to)
}

/// Holds the shapes of a product against each other.
pub(crate) fn check(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<()> {
    let ((_, k), (n, w_k)) = match (x.dims2(), w.dims2()) {
        (Ok(x), Ok(w)) => (x, w),
        _ => bail!("linear: x must be [T, K] and w [N, K], got {:?} and {:?}", x.dims(), w.dims()),
    };
    if k != w_k {
        bail!("linear: x {:?} and w {:?} differ in their last size", x.dims(), w.dims());
    }
    match bias {
        Some(bias) if bias.dims() != [n] => bail!("linear: bias must be [{n}] beside w {:?}, got {:?}", w.dims(), bias.dims()),
        _ => Ok(()),
    }
}

#[cfg(feature = "cuda")]
fn on_gpu(gpu: &Gpu, x: &Tensor, w: &Tensor, bias: Option<&Tensor>, to: DType) -> Result<Tensor> {
    let ((rows, k), outputs) = (x.dims2()?, w.dim(0)?);
    let out = gpu.empty((rows, outputs), to)?;
    match gemv::suits(rows, k) {
        true => gemv::product(gpu, x, w, bias, &out)?,
        false => {
            suffix("linear", x, &std::iter::once(w).chain(bias).collect::<Vec<_>>())?;
            Product { x, w, bias, out: &out }.go(gpu)?;
        }
    }
    Ok(out)
}

struct Linear;

impl Linear {
    fn product(x: &CpuStorage, x_layout: &Layout, w: &CpuStorage, w_layout: &Layout) -> Result<(Vec<f32>, Shape)> {
        let ((rows, k), (outputs, _)) = (x_layout.shape().dims2()?, w_layout.shape().dims2()?);
        let x = f32s("linear", "x", x, x_layout)?;
        let mut out = vec![0.0; rows * outputs];
        each_float!(floats("linear", "w", w, w_layout)?, w => matmul_nt(x, w, Dims { rows, outputs, k }, &mut out));
        Ok((out, Shape::from((rows, outputs))))
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, w: &CpuStorage, w_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (out, shape) = Self::product(x, x_layout, w, w_layout)?;
        Ok((CpuStorage::F32(out), shape))
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (mut out, shape) = Self::product(x, x_layout, w, w_layout)?;
        each_float!(floats("linear", "bias", bias, bias_layout)?, bias => add_to_rows(&mut out, bias));
        Ok((CpuStorage::F32(out), shape))
    }
}

fn add_to_rows<T: crate::cpu::element::Element>(out: &mut [f32], bias: &[T]) {
    for row in out.chunks_exact_mut(bias.len().max(1)) {
        row.iter_mut().zip(bias).for_each(|(out, b)| *out += b.widen());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, noise};
    use candle_core::{D, DType};

    fn plain(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let out = x.matmul(&w.to_dtype(DType::F32)?.t()?)?;
        bias.map_or(Ok(out.clone()), |b| out.broadcast_add(&b.to_dtype(DType::F32)?))
    }

    #[test]
    fn it_agrees_with_candles_product() {
        for (t, n, k) in [(1, 1, 1), (1, 40, 96), (3, 5, 7), (6, 33, 100), (40, 64, 72)] {
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let x = noise((t, k), 1);
                let (w, bias) = (noise((n, k), 2).to_dtype(dtype).unwrap(), noise(n, 3).to_dtype(dtype).unwrap());
                assert_close(&linear(&x, &w, None).unwrap(), &plain(&x, &w, None).unwrap(), 1e-5);
                assert_close(&linear(&x, &w, Some(&bias)).unwrap(), &plain(&x, &w, Some(&bias)).unwrap(), 1e-5);
            }
        }
    }

    #[test]
    fn views_are_read_as_they_look() {
        let (x, w) = (noise((12, 5), 1), noise((12, 9), 2));
        let (x, w) = (x.t().unwrap(), w.t().unwrap().narrow(0, 2, 4).unwrap());
        assert_close(&linear(&x, &w, None).unwrap(), &plain(&x, &w, None).unwrap(), 1e-5);
        let part = noise((8, 6), 3);
        let (rows, w) = (part.narrow(0, 3, 2).unwrap(), noise((4, 6), 4));
        assert_close(&linear(&rows, &w, None).unwrap(), &plain(&rows, &w, None).unwrap(), 1e-5);
        assert_eq!(rows.dim(D::Minus1).unwrap(), 6);
    }

    #[test]
    fn wrong_shapes_and_types_are_named() {
        let (x, w) = (noise((2, 3), 1), noise((4, 5), 2));
        let cases = [
            (linear(&x, &w, None), "linear: x [2, 3] and w [4, 5] differ in their last size"),
            (linear(&x, &noise(3, 1), None), "linear: x must be [T, K] and w [N, K], got [2, 3] and [3]"),
            (linear(&x, &noise((4, 3), 1), Some(&noise(5, 1))), "linear: bias must be [4] beside w [4, 3], got [5]"),
            (linear(&x.to_dtype(DType::BF16).unwrap(), &noise((4, 3), 1), None), "linear: x must be f32 on the CPU, got bf16"),
        ];
        for (result, message) in cases {
            let error = result.unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
