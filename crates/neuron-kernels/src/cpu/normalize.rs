//! The two norms of one row.

use super::element::Element;
use super::lanes::{Kernel, LANES, Lanes};

/// `x / sqrt(mean(x²) + eps) * weight`, all `[H]`.
pub(crate) struct RmsRow<'a, T> {
    pub(crate) x: &'a [f32],
    pub(crate) weight: &'a [T],
    pub(crate) eps: f32,
    pub(crate) out: &'a mut [f32],
}

impl<T: Element> Kernel for RmsRow<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let mean = sum_of(lanes, self.x, |x| x * x) / self.x.len() as f32;
        let factor = 1.0 / (mean + self.eps).sqrt();
        for ((out, x), weight) in self.out.iter_mut().zip(self.x).zip(self.weight) {
            *out = x * factor * weight.widen();
        }
    }
}

/// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`, all `[H]`.
pub(crate) struct LayerRow<'a, W, B> {
    pub(crate) x: &'a [f32],
    pub(crate) weight: &'a [W],
    pub(crate) bias: &'a [B],
    pub(crate) eps: f32,
    pub(crate) out: &'a mut [f32],
}

impl<W: Element, B: Element> Kernel for LayerRow<'_, W, B> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let len = self.x.len() as f32;
        let mean = sum_of(lanes, self.x, |x| x) / len;
        let variance = sum_of(lanes, self.x, |x| (x - mean) * (x - mean)) / len;
        let factor = 1.0 / (variance + self.eps).sqrt();
        for (((out, x), weight), bias) in self.out.iter_mut().zip(self.x).zip(self.weight).zip(self.bias) {
            *out = ((x - mean) * factor).mul_add(weight.widen(), bias.widen());
        }
    }
}

/// The sum of `f` over a row, in four vectors of running sums.
#[inline(always)]
fn sum_of<L: Lanes>(lanes: L, x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [[0.0_f32; LANES]; 4];
    let (groups, tail) = x.as_chunks::<{ 4 * LANES }>();
    for group in groups {
        sums.as_flattened_mut().iter_mut().zip(group).for_each(|(sum, &x)| *sum += f(x));
    }
    sums.as_flattened_mut().iter_mut().zip(tail).for_each(|(sum, &x)| *sum += f(x));
    let [a, b, c, d] = sums;
    let total: [f32; LANES] = std::array::from_fn(|i| (a[i] + c[i]) + (b[i] + d[i]));
    lanes.sum(lanes.load(&total))
}
