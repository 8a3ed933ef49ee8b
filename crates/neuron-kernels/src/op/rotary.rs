//! Rotary position embedding.

use crate::cpu::fill_rows;
use crate::cpu::view::f32s;
#[cfg(feature = "cuda")]
use crate::cuda::{Gpu, Launch, suffix};
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

/// Rotates the halves of each head: element `i` of the first half with element `i` of the second.
///
/// `x` is `[T, H, D]`, `cos` and `sin` are `[T, D/2]` f32, the result has the shape of `x`.
///
/// # Errors
/// When the shapes are not those, or a type is not f32 on the CPU.
pub fn rotary(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    match x.dims() {
        &[t, _, d] if d % 2 == 0 && cos.dims() == [t, d / 2] && sin.dims() == [t, d / 2] => {}
        dims => bail!("rotary: x must be [T, H, D], cos and sin [T, D/2], got {dims:?}, {:?} and {:?}", cos.dims(), sin.dims()),
    }
    let (x, cos, sin) = (x.contiguous()?, cos.contiguous()?, sin.contiguous()?);
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(x.device())? {
        return on_gpu(&gpu, &x, &cos, &sin);
    }
    x.apply_op3_no_bwd(&cos, &sin, &Rotary)
}

/// The cosines and sines of one step's angles, `[T, D/2]` f32 each.
///
/// `positions` is `[A, T]` u32, one row per axis (time, height, width); `frequencies` is `[A, D/2]` f32, each frequency in the row of the
/// axis that it belongs to and zero in the others, so that an angle is one product.
///
/// # Errors
/// When the shapes do not fit together, or a type is none of those.
pub fn rotary_table(positions: &Tensor, frequencies: &Tensor) -> Result<(Tensor, Tensor)> {
    match (positions.dims(), frequencies.dims()) {
        ([axes, _], [rows, _]) if axes == rows => {}
        (positions, frequencies) => {
            bail!("rotary_table: positions must be [A, T] and frequencies [A, D/2], got {positions:?} and {frequencies:?}")
        }
    }
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(positions.device())? {
        return table_on_gpu(&gpu, &positions.contiguous()?, frequencies);
    }
    let angles = positions.t()?.to_dtype(DType::F32)?.contiguous()?.matmul(frequencies)?;
    Ok((angles.cos()?, angles.sin()?))
}

#[cfg(feature = "cuda")]
fn on_gpu(gpu: &Gpu, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    const WARPS: usize = 8;
    let (tokens, heads, width) = x.dims3()?;
    let rows = tokens * heads;
    let out = gpu.empty(x.dims(), x.dtype())?;
    let launch = Launch::new(gpu, format!("rotary_{}", suffix("rotary", x, &[])?)).grid(rows.div_ceil(WARPS), 1, 1).block(32 * WARPS);
    let launch = launch.tensor(x)?.floats(cos)?.floats(sin)?;
    launch.arg(heads as u32).arg(width as u32).arg(rows as u32).tensor(&out)?.go()?;
    Ok(out)
}

#[cfg(feature = "cuda")]
fn table_on_gpu(gpu: &Gpu, positions: &Tensor, frequencies: &Tensor) -> Result<(Tensor, Tensor)> {
    let ((axes, tokens), half) = (positions.dims2()?, frequencies.dim(1)?);
    let (cos, sin) = (gpu.empty((tokens, half), DType::F32)?, gpu.empty((tokens, half), DType::F32)?);
    let launch = Launch::new(gpu, "rotary_table").grid((tokens * half).div_ceil(256), 1, 1);
    let launch = launch.tensor(positions)?.floats(frequencies)?.arg(axes as u32).arg(tokens as u32).arg(half as u32);
    launch.tensor(&cos)?.tensor(&sin)?.go()?;
    Ok((cos, sin))
}

struct Rotary;

impl CustomOp3 for Rotary {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        cos: &CpuStorage,
        cos_layout: &Layout,
        sin: &CpuStorage,
        sin_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, heads, width) = x_layout.shape().dims3()?;
        let (x, half) = (f32s("rotary", "x", x, x_layout)?, width / 2);
        let (cos, sin) = (f32s("rotary", "cos", cos, cos_layout)?, f32s("rotary", "sin", sin, sin_layout)?);
        let mut out = vec![0.0; x.len()];
        fill_rows(&mut out, heads * width, 3 * heads * width, |token, out| {
            let (cos, sin) = (&cos[token * half..(token + 1) * half], &sin[token * half..(token + 1) * half]);
            let x = &x[token * heads * width..];
            for (x, out) in x.chunks_exact(width.max(1)).zip(out.chunks_exact_mut(width.max(1))) {
                rotate(x, cos, sin, out);
            }
        });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

fn rotate(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
    let half = cos.len();
    let ((a, b), (to_a, to_b)) = (x.split_at(half), out.split_at_mut(half));
    for i in 0..half {
        to_a[i] = a[i] * cos[i] - b[i] * sin[i];
        to_b[i] = b[i] * cos[i] + a[i] * sin[i];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, bits, noise};

    fn plain(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
        let half = x.dim(2)? / 2;
        let (a, b) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
        let turned = Tensor::cat(&[&b.neg()?, &a], 2)?;
        let whole = |t: &Tensor| Tensor::cat(&[t, t], 1)?.unsqueeze(1);
        x.broadcast_mul(&whole(cos)?)? + turned.broadcast_mul(&whole(sin)?)?
    }

    #[test]
    fn it_agrees_with_the_plain_form_and_token_by_token() {
        for (t, h, d) in [(1, 1, 2), (3, 4, 10), (5, 2, 64), (200, 8, 128)] {
            let (x, cos, sin) = (noise((t, h, d), 1), noise((t, d / 2), 2), noise((t, d / 2), 3));
            let got = rotary(&x, &cos, &sin).unwrap();
            assert_close(&got, &plain(&x, &cos, &sin).unwrap(), 1e-6);
            let last = |x: &Tensor| x.narrow(0, t - 1, 1).unwrap();
            assert_eq!(bits(&last(&got)), bits(&rotary(&last(&x), &last(&cos), &last(&sin)).unwrap()));
        }
    }

    #[test]
    fn angles_of_another_shape_are_named() {
        let error = rotary(&noise((2, 3, 8), 1), &noise((2, 8), 1), &noise((2, 8), 1)).unwrap_err().to_string();
        assert!(error.starts_with("rotary: x must be [T, H, D], cos and sin [T, D/2], got [2, 3, 8], [2, 8] and [2, 8]"), "{error}");
    }
}
