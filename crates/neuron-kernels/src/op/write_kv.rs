//! Keys and values of new tokens, written to their slots of the paged cache.

use crate::cpu::element::Element;
use crate::cpu::view::{f32s, span};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, bail};

/// Writes one row of each head per new token, in place.
///
/// `k` and `v` are `[T, Hkv, D]`, the caches `[blocks, Hkv, BLOCK, D]` (contiguous; f32, bf16 or f16, rounded to nearest), and
/// token `t` goes to offset `slots[t] % BLOCK` of block `slots[t] / BLOCK`.
///
/// # Errors
/// When the shapes do not fit together, a slot is outside the cache, or a type is none of those.
pub fn write_kv(k: &Tensor, v: &Tensor, k_cache: &Tensor, v_cache: &Tensor, slots: &[u32]) -> Result<()> {
    if k.dims() != v.dims() || k_cache.dims() != v_cache.dims() {
        bail!("write_kv: keys and values differ: k {:?}, v {:?}, caches {:?} and {:?}", k.dims(), v.dims(), k_cache.dims(), v_cache.dims());
    }
    let (&[tokens, heads, width], &[blocks, cache_heads, block, cache_width]) = (k.dims(), k_cache.dims()) else {
        bail!("write_kv: k must be [T, Hkv, D] and its cache [blocks, Hkv, BLOCK, D], got {:?} and {:?}", k.dims(), k_cache.dims());
    };
    if (heads, width) != (cache_heads, cache_width) {
        bail!("write_kv: k {:?} and its cache {:?} differ in heads or width", k.dims(), k_cache.dims());
    }
    if slots.len() != tokens {
        bail!("write_kv: {} slots for {tokens} tokens", slots.len());
    }
    if let Some(slot) = slots.iter().find(|&&slot| slot as usize >= blocks * block) {
        bail!("write_kv: slot {slot} is outside the cache of {blocks} blocks of {block}");
    }
    let write = WriteRows { slots };
    k_cache.inplace_op2(&k.contiguous()?, &write)?;
    v_cache.inplace_op2(&v.contiguous()?, &write)
}

/// Writes the rows of one of the two.
struct WriteRows<'a> {
    slots: &'a [u32],
}

impl InplaceOp2 for WriteRows<'_> {
    fn name(&self) -> &'static str {
        "write_kv"
    }

    fn cpu_fwd(&self, cache: &mut CpuStorage, cache_layout: &Layout, rows: &CpuStorage, rows_layout: &Layout) -> Result<()> {
        let (_, heads, block, width) = cache_layout.shape().dims4()?;
        let rows = f32s("write_kv", "k and v", rows, rows_layout)?;
        let range = span("write_kv", "the cache", cache_layout)?;
        let dims = [heads, block, width];
        match cache {
            CpuStorage::F32(cache) => self.write(rows, &mut cache[range], dims),
            CpuStorage::BF16(cache) => self.write(rows, &mut cache[range], dims),
            CpuStorage::F16(cache) => self.write(rows, &mut cache[range], dims),
            _ => bail!("write_kv: the cache must be f32, bf16 or f16, got {}", cache.dtype().as_str()),
        }
        Ok(())
    }
}

impl WriteRows<'_> {
    fn write<T: Element>(&self, rows: &[f32], cache: &mut [T], [heads, block, width]: [usize; 3]) {
        for (rows, &slot) in rows.chunks_exact((heads * width).max(1)).zip(self.slots) {
            let (at, offset) = (slot as usize / block, slot as usize % block);
            for (head, row) in rows.chunks_exact(width).enumerate() {
                let to = &mut cache[((at * heads + head) * block + offset) * width..][..width];
                to.iter_mut().zip(row).for_each(|(to, x)| *to = T::narrow(*x));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bits, noise};
    use candle_core::{DType, Device, IndexOp};

    #[test]
    fn each_row_lands_in_its_slot_and_nothing_else_changes() {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let (k, v) = (noise((3, 2, 5), 1), noise((3, 2, 5), 2));
            let caches = [noise((4, 2, 8, 5), 3), noise((4, 2, 8, 5), 4)].map(|c| c.to_dtype(dtype).unwrap());
            let before = caches.each_ref().map(|c| c.copy().unwrap());
            let slots = [31, 0, 13];
            write_kv(&k, &v, &caches[0], &caches[1], &slots).unwrap();
            for (cache, (before, rows)) in caches.iter().zip(before.iter().zip([k, v])) {
                for slot in 0..32_usize {
                    let at = |cache: &Tensor| bits(&cache.i((slot / 8, .., slot % 8, ..)).unwrap());
                    let want = match slots.iter().position(|&s| s as usize == slot) {
                        Some(token) => bits(&rows.i(token).unwrap().to_dtype(dtype).unwrap()),
                        None => at(before),
                    };
                    assert_eq!(at(cache), want, "slot {slot}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let cache = Tensor::zeros((2, 2, 4, 6), DType::F32, &Device::Cpu).unwrap();
        let cases = [
            (noise((1, 2, 6), 1), vec![8], "write_kv: slot 8 is outside the cache of 2 blocks of 4"),
            (noise((1, 2, 6), 1), vec![1, 2], "write_kv: 2 slots for 1 tokens"),
            (noise((1, 3, 6), 1), vec![1], "write_kv: k [1, 3, 6] and its cache [2, 2, 4, 6] differ in heads or width"),
        ];
        for (k, slots, message) in cases {
            let error = write_kv(&k, &k, &cache, &cache.copy().unwrap(), &slots).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
