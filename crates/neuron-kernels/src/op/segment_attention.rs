//! Attention without a cache, where every token of a segment sees the whole segment.

use crate::cpu::attend::Context;
use crate::cpu::attend_batch::{Heads, Segment, attend_batch};
use crate::cpu::view::f32s;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

/// Bidirectional attention inside each of several segments laid end to end.
///
/// `q`, `k` and `v` are `[T, H, D]`, the segment lengths add up to T, the result has the shape of `q`. `scale` multiplies the
/// scores.
///
/// # Errors
/// When the shapes differ, the lengths do not add up to T, or a type is not f32 on the CPU.
pub fn segment_attention(q: &Tensor, k: &Tensor, v: &Tensor, segment_lens: &[usize], scale: f32) -> Result<Tensor> {
    if q.rank() != 3 || q.dims() != k.dims() || q.dims() != v.dims() {
        bail!("segment_attention: q, k and v must be one [T, H, D], got {:?}, {:?} and {:?}", q.dims(), k.dims(), v.dims());
    }
    let total: usize = segment_lens.iter().sum();
    if total != q.dim(0)? {
        bail!("segment_attention: segment_lens add up to {total}, q is {:?}", q.dims());
    }
    #[cfg(feature = "cuda")]
    if let Some(gpu) = crate::cuda::Gpu::of(q.device())? {
        let starts: Vec<u32> = std::iter::once(0)
            .chain(segment_lens.iter().scan(0, |end, len| {
                *end += *len as u32;
                Some(*end)
            }))
            .collect();
        let starts = Tensor::new(starts, q.device())?;
        return crate::cuda::attention::segments(&gpu, [&q.contiguous()?, &k.contiguous()?, &v.contiguous()?], &starts, scale);
    }
    q.contiguous()?.apply_op3_no_bwd(&k.contiguous()?, &v.contiguous()?, &SegmentAttention { segment_lens, scale })
}

struct SegmentAttention<'a> {
    segment_lens: &'a [usize],
    scale: f32,
}

impl CustomOp3 for SegmentAttention<'_> {
    fn name(&self) -> &'static str {
        "segment_attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, heads, width) = q_layout.shape().dims3()?;
        let q = f32s("segment_attention", "q", q, q_layout)?;
        let (keys, values) = (f32s("segment_attention", "k", k, k_layout)?, f32s("segment_attention", "v", v, v_layout)?);
        let segments: Vec<Segment> = self.segment_lens.iter().map(|&len| Segment { queries: len, context: len, causal: false }).collect();
        let starts: Vec<usize> = self.segment_lens.iter().scan(0, |at, len| Some(std::mem::replace(at, *at + len))).collect();
        let context = |segment: usize, head| Rows { keys, values, first: starts[segment], head, heads, width };
        let mut out = vec![0.0; q.len()];
        attend_batch(q, Heads { heads, kv_heads: heads, width }, self.scale, &segments, context, &mut out);
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }
}

/// One head of one segment of `[T, H, D]`.
struct Rows<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    first: usize,
    head: usize,
    heads: usize,
    width: usize,
}

impl Rows<'_> {
    #[inline(always)]
    fn at(&self, position: usize) -> std::ops::Range<usize> {
        let start = ((self.first + position) * self.heads + self.head) * self.width;
        start..start + self.width
    }
}

impl Context for Rows<'_> {
    type Element = f32;

    #[inline(always)]
    fn key(&self, position: usize) -> &[f32] {
        &self.keys[self.at(position)]
    }
    #[inline(always)]
    fn value(&self, position: usize) -> &[f32] {
        &self.values[self.at(position)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, bits, noise};

    fn plain(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Tensor> {
        let [q, k, v] = [q, k, v].map(|t| t.transpose(0, 1).unwrap().contiguous().unwrap());
        let weights = candle_nn::ops::softmax_last_dim(&(q.matmul(&k.t()?)? * scale)?)?;
        weights.matmul(&v)?.transpose(0, 1)?.contiguous()
    }

    #[test]
    fn each_segment_is_attention_of_its_own_bit_for_bit() {
        for (heads, width) in [(1, 4), (3, 72), (2, 17)] {
            let lens = [5, 1, 64, 0, 33];
            let total = lens.iter().sum();
            let [q, k, v] = [1, 2, 3].map(|seed| noise((total, heads, width), seed));
            let together = segment_attention(&q, &k, &v, &lens, 0.2).unwrap();
            let mut start = 0;
            for len in lens.into_iter().filter(|&len| len > 0) {
                let [q, k, v, got] = [&q, &k, &v, &together].map(|t| t.narrow(0, start, len).unwrap());
                assert_close(&got, &plain(&q, &k, &v, 0.2).unwrap(), 1e-5);
                assert_eq!(bits(&got), bits(&segment_attention(&q, &k, &v, &[len], 0.2).unwrap()));
                start += len;
            }
        }
    }

    #[test]
    fn lengths_that_do_not_add_up_are_named() {
        let x = noise((4, 1, 8), 1);
        let error = segment_attention(&x, &x, &x, &[1, 2], 1.0).unwrap_err().to_string();
        assert!(error.starts_with("segment_attention: segment_lens add up to 3, q is [4, 1, 8]"), "{error}");
    }
}
