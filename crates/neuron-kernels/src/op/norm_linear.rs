//! The norm at the head of a block and the products that follow it.

use super::add_rms_norm::add_rms_norm;
use super::linear::{gated_linear, linear};
use super::rms_norm::rms_norm;
#[cfg(feature = "cuda")]
use super::{linear::check, rms_norm::check_weight};
#[cfg(feature = "cuda")]
use crate::cuda::{Gpu, gemv};
use candle_core::{Result, Tensor};

/// What a block begins with: the residual stream, what joins it first, and the norm of the sum.
#[derive(Clone, Copy, Debug)]
pub struct PreNorm<'a> {
    /// The stream, `[T, H]`.
    pub stream: &'a Tensor,
    /// The output of the block before, of the same shape; `None` where it is in the stream already.
    pub last: Option<&'a Tensor>,
    /// The weight of the norm, `[H]`.
    pub weight: &'a Tensor,
    /// What is added to the mean square.
    pub eps: f32,
}

impl PreNorm<'_> {
    /// The normed rows and the sum, both `[T, H]`.
    ///
    /// # Errors
    /// As [`add_rms_norm`].
    pub fn apply(&self) -> Result<(Tensor, Tensor)> {
        match self.last {
            Some(last) => add_rms_norm(last, self.stream, self.weight, self.eps),
            None => Ok((rms_norm(self.stream, self.weight, self.eps)?, self.stream.clone())),
        }
    }
}

/// [`linear`] of the normed rows, and the sum that was normed. On a GPU few rows are normed on the way to the product.
///
/// # Errors
/// As [`add_rms_norm`] and [`linear`].
pub fn norm_linear(x: PreNorm, w: &Tensor, bias: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
    #[cfg(feature = "cuda")]
    if let Some((gpu, operands)) = few_rows(&x, w)? {
        check(&operands.stream, w, bias)?;
        let bias = bias.map(Tensor::contiguous).transpose()?;
        return gemv::normed_product(&gpu, &operands.borrow(), &w.contiguous()?, bias.as_ref());
    }
    let (normed, sum) = x.apply()?;
    Ok((linear(&normed, w, bias)?, sum))
}

/// [`gated_linear`] of the normed rows, and the sum that was normed. On a GPU few rows are normed on the way to the product.
///
/// # Errors
/// As [`add_rms_norm`] and [`gated_linear`].
pub fn norm_gated_linear(x: PreNorm, gate_up: &Tensor, bias: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
    #[cfg(feature = "cuda")]
    if let (Some((gpu, operands)), None, Ok(0)) = (few_rows(&x, gate_up)?, bias, gate_up.dim(0).map(|both| both % 2)) {
        check(&operands.stream, gate_up, None)?;
        return gemv::normed_gated(&gpu, &operands.borrow(), &gate_up.contiguous()?);
    }
    let (normed, sum) = x.apply()?;
    Ok((gated_linear(&normed, gate_up, bias)?, sum))
}

/// A [`PreNorm`] whose tensors are contiguous.
#[cfg(feature = "cuda")]
struct Contiguous {
    stream: Tensor,
    last: Option<Tensor>,
    weight: Tensor,
    eps: f32,
}

#[cfg(feature = "cuda")]
impl Contiguous {
    fn borrow(&self) -> PreNorm<'_> {
        PreNorm { stream: &self.stream, last: self.last.as_ref(), weight: &self.weight, eps: self.eps }
    }
}

/// The GPU and the operands, if these rows are few enough to be normed on the way.
#[cfg(feature = "cuda")]
fn few_rows(x: &PreNorm, w: &Tensor) -> Result<Option<(std::rc::Rc<Gpu>, Contiguous)>> {
    let Some(gpu) = Gpu::of(x.stream.device())?.filter(|_| gemv::suits_normed(x) && w.rank() == 2) else { return Ok(None) };
    check_weight("norm_linear", x.stream, x.weight)?;
    if let Some(last) = x.last
        && last.dims() != x.stream.dims()
    {
        candle_core::bail!("norm_linear: the stream {:?} and what joins it {:?} must have one shape", x.stream.dims(), last.dims());
    }
    let last = x.last.map(Tensor::contiguous).transpose()?;
    Ok(Some((gpu, Contiguous { stream: x.stream.contiguous()?, last, weight: x.weight.contiguous()?, eps: x.eps })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bits, noise};

    #[test]
    fn it_is_the_norm_and_the_product_one_after_the_other() {
        for (rows, width, outputs) in [(1, 8, 6), (3, 33, 10), (5, 64, 4)] {
            let (stream, last, weight) = (noise((rows, width), 1), noise((rows, width), 2), noise(width, 3));
            let (w, bias) = (noise((outputs, width), 4), noise(outputs, 5));
            for last in [Some(&last), None] {
                let x = PreNorm { stream: &stream, last, weight: &weight, eps: 1e-6 };
                let plain = last.map_or(Ok(stream.clone()), |last| &stream + last).unwrap();
                let normed = rms_norm(&plain, &weight, 1e-6).unwrap();
                let (out, sum) = norm_linear(x, &w, Some(&bias)).unwrap();
                assert_eq!((bits(&out), bits(&sum)), (bits(&linear(&normed, &w, Some(&bias)).unwrap()), bits(&plain)));
                let (out, sum) = norm_gated_linear(x, &w, None).unwrap();
                assert_eq!((bits(&out), bits(&sum)), (bits(&gated_linear(&normed, &w, None).unwrap()), bits(&plain)));
            }
        }
    }
}
