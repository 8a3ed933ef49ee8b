//! Products of few rows: bound by the bytes of their weights.

use candle_core::{Result, Tensor};

use super::{Gpu, Launch, suffix};
use crate::PreNorm;

/// Warps of a block of threads; each takes two outputs.
const WARPS: usize = 8;
/// So many rows the kernels were built for.
const ROWS_MAX: usize = 4;
/// What a block can normalise of a row: groups of eight, four a thread.
const NORMED_WIDTH_MAX: usize = 8 * 4 * 32 * WARPS;
/// The normed rows lie in shared memory; no more of it, so that several blocks share a multiprocessor.
const NORMED_BYTES_MAX: usize = 32 << 10;

/// Whether `rows` of `k` numbers suit. The kernels read whole groups of eight.
pub(crate) fn suits(rows: usize, k: usize) -> bool {
    (1..=ROWS_MAX).contains(&rows) && k.is_multiple_of(8)
}

/// Whether these rows can be normalised on the way.
pub(crate) fn suits_normed(of: &PreNorm) -> bool {
    matches!(of.stream.dims2(), Ok((rows, k)) if suits(rows, k) && k <= NORMED_WIDTH_MAX && rows * k * of.stream.dtype().size_in_bytes() <= NORMED_BYTES_MAX)
}

/// `x` `[M, K]` times `w` `[N, K]` transposed, plus `bias` `[N]`, to `out` `[M, N]` of the type of `x`, or f32.
pub(crate) fn product(gpu: &Gpu, x: &Tensor, w: &Tensor, bias: Option<&Tensor>, out: &Tensor) -> Result<()> {
    let ((rows, k), outputs) = (x.dims2()?, w.dim(0)?);
    let kind = if out.dtype() == x.dtype() { "gemv" } else { "gemv_wide" };
    let operands: Vec<&Tensor> = std::iter::once(w).chain(bias).collect();
    let launch = Launch::new(gpu, format!("{kind}_{}_{rows}", suffix("linear", x, &operands)?)).tensor(x)?;
    let launch = launch.tensor(w)?.optional(bias)?.arg(outputs as u32).arg(k as u32).tensor(out)?;
    launch.grid(outputs.div_ceil(2 * WARPS), 1, 1).block(32 * WARPS).go()
}

/// `silu(x gate^T) * (x up^T)` of `x` `[M, K]`, with `w` `[2 I, K]` the gate above.
pub(crate) fn gated(gpu: &Gpu, x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let ((rows, k), inner) = (x.dims2()?, w.dim(0)? / 2);
    let out = gpu.empty((rows, inner), x.dtype())?;
    let launch = Launch::new(gpu, format!("gated_gemv_{}_{rows}", suffix("gated_linear", x, &[w])?)).tensor(x)?;
    let launch = launch.tensor(w)?.arg(inner as u32).arg(k as u32).tensor(&out)?;
    launch.grid(inner.div_ceil(WARPS), 1, 1).block(32 * WARPS).go()?;
    Ok(out)
}

/// [`product`] of normed rows, and the sum that was normed.
pub(crate) fn normed_product(gpu: &Gpu, x: &PreNorm, w: &Tensor, bias: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
    let ((rows, k), outputs) = (x.stream.dims2()?, w.dim(0)?);
    let (launch, sum) = normed(gpu, "normed_gemv", x, std::iter::once(w).chain(bias))?;
    let out = gpu.empty((rows, outputs), x.stream.dtype())?;
    let launch = launch.tensor(w)?.optional(bias)?.arg(outputs as u32).arg(k as u32).tensor(&out)?;
    launch.grid(outputs.div_ceil(2 * WARPS), 1, 1).go()?;
    Ok((out, sum))
}

/// [`gated`] of normed rows, and the sum that was normed.
pub(crate) fn normed_gated(gpu: &Gpu, x: &PreNorm, w: &Tensor) -> Result<(Tensor, Tensor)> {
    let ((rows, k), inner) = (x.stream.dims2()?, w.dim(0)? / 2);
    let (launch, sum) = normed(gpu, "normed_gated_gemv", x, [w])?;
    let out = gpu.empty((rows, inner), x.stream.dtype())?;
    launch.tensor(w)?.arg(inner as u32).arg(k as u32).tensor(&out)?.grid(inner.div_ceil(WARPS), 1, 1).go()?;
    Ok((out, sum))
}

/// A launch with the norm's operands, and where the sum will be: the stream itself if nothing joins it.
fn normed<'a, 'b>(gpu: &'a Gpu, kind: &str, x: &PreNorm<'b>, others: impl IntoIterator<Item = &'b Tensor>) -> Result<(Launch<'a>, Tensor)> {
    let (rows, k) = x.stream.dims2()?;
    let operands: Vec<&Tensor> = others.into_iter().chain(x.last).chain([x.weight]).collect();
    let suffix = suffix(kind, x.stream, &operands)?;
    let sum = match x.last {
        Some(_) => gpu.empty((rows, k), x.stream.dtype())?,
        None => x.stream.clone(),
    };
    let launch = Launch::new(gpu, format!("{kind}_{suffix}_{rows}")).optional(x.last)?.tensor(x.stream)?.tensor(x.weight)?.arg(x.eps);
    let shared = rows * k * x.stream.dtype().size_in_bytes();
    Ok((launch.tensor(&sum)?.block(32 * WARPS).shared(shared), sum))
}
