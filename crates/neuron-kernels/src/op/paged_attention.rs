//! Attention of the tokens of one step to their sequences, read from the paged cache.

use crate::PagedBatch;
use crate::cpu::attend::Context;
use crate::cpu::attend_batch::{Heads, Segment, attend_batch};
use crate::cpu::element::Element;
use crate::cpu::view::{Floats, f32s, floats};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

/// Causal attention over a paged cache that already holds the keys and values of this step.
///
/// `q` is `[T, H, D]`, the caches `[blocks, Hkv, BLOCK, D]` (f32, bf16 or f16), the result has the shape of `q`. Query head `i`
/// uses KV head `i / (H / Hkv)`. `scale` multiplies the scores, usually `1 / sqrt(D)`.
///
/// # Errors
/// When the shapes do not fit together, the batch does not describe `q`, or a block table is too short or names a block outside
/// the cache.
pub fn paged_attention(q: &Tensor, k_cache: &Tensor, v_cache: &Tensor, batch: &PagedBatch, scale: f32) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = crate::cuda::Gpu::of(q.device())? {
        return crate::cuda::attention::paged(&gpu, &q.contiguous()?, [k_cache, v_cache], batch.tables()?, scale);
    }
    check(q, k_cache, v_cache, batch)?;
    q.contiguous()?.apply_op3_no_bwd(k_cache, v_cache, &PagedAttention { batch, scale })
}

fn check(q: &Tensor, k_cache: &Tensor, v_cache: &Tensor, batch: &PagedBatch) -> Result<()> {
    let (&[tokens, heads, width], &[blocks, kv_heads, block, cache_width]) = (q.dims(), k_cache.dims()) else {
        bail!("paged_attention: q must be [T, H, D] and the caches [blocks, Hkv, BLOCK, D], got {:?} and {:?}", q.dims(), k_cache.dims());
    };
    if k_cache.dims() != v_cache.dims() || width != cache_width || kv_heads == 0 || heads % kv_heads != 0 {
        bail!("paged_attention: q {:?} does not fit caches {:?} and {:?}", q.dims(), k_cache.dims(), v_cache.dims());
    }
    if block != batch.block_size {
        bail!("paged_attention: the batch has blocks of {}, the cache {:?}", batch.block_size, k_cache.dims());
    }
    let PagedBatch { query_lens, context_lens, block_tables, .. } = batch;
    if query_lens.iter().sum::<usize>() != tokens {
        bail!("paged_attention: query_lens add up to {}, q is {:?}", query_lens.iter().sum::<usize>(), q.dims());
    }
    if context_lens.len() != query_lens.len() || block_tables.len() != query_lens.len() {
        bail!("paged_attention: {} query_lens, {} context_lens, {} block_tables", query_lens.len(), context_lens.len(), block_tables.len());
    }
    for (i, (&context, table)) in context_lens.iter().zip(block_tables).enumerate() {
        if context < query_lens[i] {
            bail!("paged_attention: sequence {i} has {} new tokens in a context of {context}", query_lens[i]);
        }
        let used = context.div_ceil(block.max(1));
        match table.get(..used) {
            None => bail!("paged_attention: sequence {i} needs {used} blocks for {context} tokens, its table has {}", table.len()),
            Some(table) => {
                if let Some(at) = table.iter().find(|&&at| at as usize >= blocks) {
                    bail!("paged_attention: sequence {i} names block {at}, the cache has {blocks}");
                }
            }
        }
    }
    Ok(())
}

struct PagedAttention<'a> {
    batch: &'a PagedBatch,
    scale: f32,
}

impl CustomOp3 for PagedAttention<'_> {
    fn name(&self) -> &'static str {
        "paged_attention"
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
        let (_, kv_heads, _, _) = k_layout.shape().dims4()?;
        let q = f32s("paged_attention", "q", q, q_layout)?;
        let heads = Heads { heads, kv_heads, width };
        let mut out = vec![0.0; q.len()];
        match (floats("paged_attention", "k_cache", k, k_layout)?, floats("paged_attention", "v_cache", v, v_layout)?) {
            (Floats::F32(k), Floats::F32(v)) => self.attend(q, k, v, heads, &mut out),
            (Floats::Bf16(k), Floats::Bf16(v)) => self.attend(q, k, v, heads, &mut out),
            (Floats::F16(k), Floats::F16(v)) => self.attend(q, k, v, heads, &mut out),
            _ => bail!("paged_attention: the two caches must be of one type"),
        }
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }
}

impl PagedAttention<'_> {
    fn attend<T: Element>(&self, q: &[f32], keys: &[T], values: &[T], heads: Heads, out: &mut [f32]) {
        let PagedBatch { query_lens, context_lens, block_tables, block_size, .. } = self.batch;
        let segments: Vec<Segment> =
            query_lens.iter().zip(context_lens).map(|(&queries, &context)| Segment { queries, context, causal: true }).collect();
        let context = |sequence: usize, kv_head| Pages {
            keys,
            values,
            table: &block_tables[sequence],
            kv_head,
            kv_heads: heads.kv_heads,
            block_size: *block_size,
            width: heads.width,
        };
        attend_batch(q, heads, self.scale, &segments, context, out);
    }
}

/// One KV head of one sequence, found through its block table.
struct Pages<'a, T> {
    keys: &'a [T],
    values: &'a [T],
    table: &'a [u32],
    kv_head: usize,
    kv_heads: usize,
    block_size: usize,
    width: usize,
}

impl<T> Pages<'_, T> {
    #[inline(always)]
    fn at(&self, position: usize) -> std::ops::Range<usize> {
        let (block, offset) = (self.table[position / self.block_size] as usize, position % self.block_size);
        let start = ((block * self.kv_heads + self.kv_head) * self.block_size + offset) * self.width;
        start..start + self.width
    }
}

impl<T: Element> Context for Pages<'_, T> {
    type Element = T;

    #[inline(always)]
    fn key(&self, position: usize) -> &[T] {
        &self.keys[self.at(position)]
    }
    #[inline(always)]
    fn value(&self, position: usize) -> &[T] {
        &self.values[self.at(position)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, bits, noise};
    use crate::write_kv;
    use candle_core::{D, DType, Device};

    #[derive(Clone, Copy)]
    struct Case {
        heads: usize,
        kv_heads: usize,
        width: usize,
        block: usize,
        dtype: DType,
    }

    const CASES: [Case; 6] = [
        Case { heads: 1, kv_heads: 1, width: 8, block: 4, dtype: DType::F32 },
        Case { heads: 4, kv_heads: 2, width: 5, block: 3, dtype: DType::F32 },
        Case { heads: 8, kv_heads: 2, width: 64, block: 32, dtype: DType::BF16 },
        Case { heads: 6, kv_heads: 2, width: 20, block: 16, dtype: DType::F16 },
        Case { heads: 7, kv_heads: 1, width: 24, block: 32, dtype: DType::F32 },
        Case { heads: 5, kv_heads: 1, width: 128, block: 7, dtype: DType::F32 },
    ];

    /// A whole sequence with its cache laid out in the given blocks.
    struct Story {
        case: Case,
        q: Tensor,
        caches: [Tensor; 2],
        table: Vec<u32>,
        k: Tensor,
        v: Tensor,
        len: usize,
    }

    impl Story {
        fn new(case: Case, len: usize, stride: usize, caches: Option<[Tensor; 2]>) -> Self {
            let Case { heads, kv_heads, width, block, dtype } = case;
            let blocks = len.div_ceil(block);
            // Blocks are scattered, and the rest of the cache holds what must never be read.
            let table: Vec<u32> = (0..blocks).map(|i| ((i * stride + 3) % 101) as u32).collect();
            let poison = || Tensor::full(f32::NAN, (101, kv_heads, block, width), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            let caches = caches.unwrap_or_else(|| [poison(), poison()]);
            let [q, k, v] = [(heads, 1), (kv_heads, 2), (kv_heads, 3)].map(|(h, seed)| noise((len, h, width), seed));
            let slots: Vec<u32> = (0..len).map(|i| table[i / block] * block as u32 + (i % block) as u32).collect();
            write_kv(&k, &v, &caches[0], &caches[1], &slots).unwrap();
            Self { case, q: (q * 3.0).unwrap(), caches, table, k, v, len }
        }

        fn chunk(&self, start: usize, len: usize) -> Tensor {
            let batch = PagedBatch {
                query_lens: vec![len],
                context_lens: vec![start + len],
                block_tables: vec![self.table.clone().into()],
                slots: vec![],
                block_size: self.case.block,
                tables: None,
            };
            paged_attention(&self.q.narrow(0, start, len).unwrap(), &self.caches[0], &self.caches[1], &batch, 0.3).unwrap()
        }

        fn whole(&self) -> Tensor {
            self.chunk(0, self.len)
        }

        fn plain(&self) -> Tensor {
            let group = self.case.heads / self.case.kv_heads;
            let spread = |t: &Tensor| {
                let t = t.to_dtype(self.case.dtype).unwrap().to_dtype(DType::F32).unwrap();
                let (len, h, d) = t.dims3().unwrap();
                let t = t.unsqueeze(2).unwrap().broadcast_as((len, h, group, d)).unwrap();
                t.reshape((len, h * group, d)).unwrap().transpose(0, 1).unwrap().contiguous().unwrap()
            };
            let (k, v) = (spread(&self.k), spread(&self.v));
            let q = self.q.transpose(0, 1).unwrap().contiguous().unwrap();
            let mask: Vec<f32> =
                (0..self.len * self.len).map(|i| if i % self.len > i / self.len { f32::NEG_INFINITY } else { 0.0 }).collect();
            let mask = Tensor::from_vec(mask, (1, self.len, self.len), &Device::Cpu).unwrap();
            let scores = (q.matmul(&k.t().unwrap()).unwrap() * 0.3).unwrap().broadcast_add(&mask).unwrap();
            let top = scores.max_keepdim(D::Minus1).unwrap();
            let weights = scores.broadcast_sub(&top).unwrap().exp().unwrap();
            let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1).unwrap()).unwrap();
            weights.matmul(&v).unwrap().transpose(0, 1).unwrap().contiguous().unwrap()
        }
    }

    #[test]
    fn it_agrees_with_attention_written_out() {
        for case in CASES {
            for len in [1, 2, 31, 33, 70, 100] {
                let story = Story::new(case, len, 17, None);
                assert_close(&story.whole(), &story.plain(), 1e-5);
            }
        }
    }

    #[test]
    fn chunks_of_any_size_give_the_bits_of_the_whole() {
        for case in CASES {
            let story = Story::new(case, 100, 17, None);
            let whole = bits(&story.whole());
            for cut in [1, 3, 8, 32, 33, 64] {
                let chunks: Vec<Tensor> = (0..100).step_by(cut).map(|start| story.chunk(start, cut.min(100 - start))).collect();
                assert_eq!(bits(&Tensor::cat(&chunks, 0).unwrap()), whole, "chunks of {cut}");
            }
        }
    }

    #[test]
    fn the_blocks_a_sequence_lies_in_change_nothing() {
        for case in CASES {
            let whole = bits(&Story::new(case, 90, 1, None).whole());
            assert_eq!(bits(&Story::new(case, 90, 29, None).whole()), whole);
            let other = Story::new(Case { block: 10, ..case }, 90, 5, None);
            assert_eq!(bits(&other.whole()), whole);
        }
    }

    #[test]
    fn sequences_that_travel_together_keep_their_bits() {
        for case in CASES {
            let a = Story::new(case, 50, 1, None);
            let mut b = Story::new(case, 50, 1, Some(a.caches.clone()));
            b.table = a.table.clone();
            // Three sequences in one step: a decode, a chunk in the middle, and a whole prompt.
            let spans = [(49, 1), (10, 23), (0, 50), (3, 1)];
            let batch = PagedBatch {
                query_lens: spans.iter().map(|s| s.1).collect(),
                context_lens: spans.iter().map(|s| s.0 + s.1).collect(),
                block_tables: vec![a.table.clone().into(); spans.len()],
                slots: vec![],
                block_size: case.block,
                tables: None,
            };
            let parts: Vec<Tensor> = spans.iter().map(|&(start, len)| a.q.narrow(0, start, len).unwrap()).collect();
            let together = paged_attention(&Tensor::cat(&parts, 0).unwrap(), &a.caches[0], &a.caches[1], &batch, 0.3).unwrap();
            let alone: Vec<Tensor> = spans.iter().map(|&(start, len)| a.chunk(start, len)).collect();
            assert_eq!(bits(&together), bits(&Tensor::cat(&alone, 0).unwrap()));
        }
    }

    #[test]
    fn a_batch_that_does_not_fit_is_named() {
        let cache = Tensor::zeros((4, 2, 8, 6), DType::F32, &Device::Cpu).unwrap();
        let q = noise((3, 4, 6), 1);
        let good = PagedBatch {
            query_lens: vec![3],
            context_lens: vec![9],
            block_tables: vec![vec![0, 3].into()],
            slots: vec![],
            block_size: 8,
            ..PagedBatch::default()
        };
        let cases = [
            (PagedBatch { query_lens: vec![2], ..good.clone() }, "paged_attention: query_lens add up to 2, q is [3, 4, 6]"),
            (PagedBatch { context_lens: vec![2], ..good.clone() }, "paged_attention: sequence 0 has 3 new tokens in a context of 2"),
            (
                PagedBatch { context_lens: vec![17], ..good.clone() },
                "paged_attention: sequence 0 needs 3 blocks for 17 tokens, its table has 2",
            ),
            (
                PagedBatch { block_tables: vec![vec![0, 4].into()], ..good.clone() },
                "paged_attention: sequence 0 names block 4, the cache has 4",
            ),
            (PagedBatch { block_size: 16, ..good.clone() }, "paged_attention: the batch has blocks of 16, the cache [4, 2, 8, 6]"),
            (PagedBatch { context_lens: vec![], ..good.clone() }, "paged_attention: 1 query_lens, 0 context_lens, 1 block_tables"),
        ];
        assert!(paged_attention(&q, &cache, &cache, &good, 1.0).is_ok());
        for (batch, message) in cases {
            let error = paged_attention(&q, &cache, &cache, &batch, 1.0).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
