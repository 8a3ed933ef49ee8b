//! Eight f32 at a time, with the same numbers on every machine.
//!
//! The width is fixed, so the order of a sum is too. AVX2 and FMA are chosen at run time; elsewhere plain loops over arrays do
//! the same arithmetic, and the compiler vectorises them as it can.

use half::{bf16, f16};

/// Lanes of one vector.
pub(crate) const LANES: usize = 8;

/// The arithmetic of one vector width, carried by a token that proves the machine has it.
pub(crate) trait Lanes: Copy + Send + Sync {
    /// Eight f32.
    type V: Copy;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, x: &[f32; LANES]) -> Self::V;
    fn load_bf16(self, x: &[bf16; LANES]) -> Self::V;
    fn load_f16(self, x: &[f16; LANES]) -> Self::V;
    fn store(self, v: Self::V) -> [f32; LANES];
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;

    /// The sum of the lanes, halves first: always the same tree.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let v = self.store(v);
        let four: [f32; 4] = std::array::from_fn(|i| v[i] + v[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }

    /// The sums of four vectors, each by the tree of [`Lanes::sum`].
    #[inline(always)]
    fn sums(self, [a, b, c, d]: [Self::V; 4]) -> [f32; 4] {
        [self.sum(a), self.sum(b), self.sum(c), self.sum(d)]
    }
}

/// Work that is compiled once per instruction set. `run` must be `#[inline(always)]`.
pub(crate) trait Kernel {
    type Output;
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Runs a kernel with the best instructions this machine has.
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = pulp::x86::V3::try_new() {
        struct On<K>(K, pulp::x86::V3);
        impl<K: Kernel> pulp::NullaryFnOnce for On<K> {
            type Output = K::Output;
            #[inline(always)]
            fn call(self) -> K::Output {
                self.0.run(Avx2(self.1))
            }
        }
        return avx2.vectorize(On(kernel, avx2));
    }
    kernel.run(Portable)
}

/// Plain arrays: the definition of what the vectors compute.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Lanes for Portable {
    type V = [f32; LANES];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::V {
        *x
    }
    #[inline(always)]
    fn load_bf16(self, x: &[bf16; LANES]) -> Self::V {
        x.map(bf16::to_f32)
    }
    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> Self::V {
        x.map(f16::to_f32)
    }
    #[inline(always)]
    fn store(self, v: Self::V) -> [f32; LANES] {
        v
    }
    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
}

/// 256-bit vectors with FMA.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct Avx2(pulp::x86::V3);

#[cfg(target_arch = "x86_64")]
impl Lanes for Avx2 {
    type V = pulp::f32x8;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        self.0.splat_f32x8(x)
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::V {
        pulp::cast(*x)
    }
    #[inline(always)]
    fn load_bf16(self, x: &[bf16; LANES]) -> Self::V {
        let mut bits = [0; LANES];
        for i in 0..LANES {
            bits[i] = x[i].to_bits();
        }
        let bits = self.0.convert_u16x8_to_u32x8(pulp::cast::<[u16; LANES], pulp::u16x8>(bits));
        pulp::cast(self.0.shl_const_u32x8::<16>(bits))
    }
    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> Self::V {
        use pulp::Simd;
        let simd = self.0;
        let mut bits = [0; LANES];
        for i in 0..LANES {
            bits[i] = x[i].to_bits();
        }
        let bits = simd.convert_u16x8_to_u32x8(pulp::cast::<[u16; LANES], pulp::u16x8>(bits));
        let sign = simd.shl_const_u32x8::<16>(simd.and_u32s(bits, simd.splat_u32s(0x8000)));
        let magnitude = simd.shl_const_u32x8::<13>(simd.and_u32s(bits, simd.splat_u32s(0x7fff)));
        // Rebiasing by a product keeps subnormals right; what lands at 2^16 or above was infinite or NaN.
        let value = simd.mul_f32s(pulp::cast(magnitude), simd.splat_f32s(f32::from_bits((127 + 112) << 23)));
        let beyond = simd.or_u32s(pulp::cast(value), simd.splat_u32s(0x7f80_0000));
        let finite = simd.less_than_f32s(value, simd.splat_f32s(65536.0));
        let value: pulp::u32x8 = simd.select_u32s(finite, pulp::cast(value), beyond);
        pulp::cast(simd.or_u32s(value, sign))
    }
    #[inline(always)]
    fn store(self, v: Self::V) -> [f32; LANES] {
        pulp::cast(v)
    }
    #[inline(always)]
    fn sums(self, [a, b, c, d]: [Self::V; 4]) -> [f32; 4] {
        use pulp::Simd;
        let (simd, avx) = (self.0, self.0.avx);
        let halves = |a: Self::V, b: Self::V| -> Self::V {
            let low = avx._mm256_permute2f128_ps::<0x20>(pulp::cast(a), pulp::cast(b));
            let high = avx._mm256_permute2f128_ps::<0x31>(pulp::cast(a), pulp::cast(b));
            simd.add_f32s(pulp::cast(low), pulp::cast(high))
        };
        // Each step folds two vectors into one: [a | b] and [c | d] of four lanes, then [a c | b d] of two, then of one.
        let (ab, cd) = (halves(a, b), halves(c, d));
        let low = avx._mm256_unpacklo_pd(pulp::cast(ab), pulp::cast(cd));
        let high = avx._mm256_unpackhi_pd(pulp::cast(ab), pulp::cast(cd));
        let pairs: Self::V = simd.add_f32s(pulp::cast(low), pulp::cast(high));
        let odd = avx._mm256_movehdup_ps(pulp::cast(pairs));
        let total: [f32; LANES] = pulp::cast(simd.add_f32s(pairs, pulp::cast(odd)));
        [total[0], total[4], total[2], total[6]]
    }
    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        self.0.mul_add_f32x8(a, b, c)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct WidenF16<'a>(&'a [f16; LANES]);
    impl Kernel for WidenF16<'_> {
        type Output = [f32; LANES];
        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) -> Self::Output {
            lanes.store(lanes.load_f16(self.0))
        }
    }

    struct Sums([[f32; LANES]; 4]);
    impl Kernel for Sums {
        type Output = [f32; 4];
        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) -> Self::Output {
            let [a, b, c, d] = &self.0;
            lanes.sums([lanes.load(a), lanes.load(b), lanes.load(c), lanes.load(d)])
        }
    }

    #[test]
    fn sums_follow_the_one_tree() {
        for seed in 1..200_u32 {
            let x: [[f32; LANES]; 4] = std::array::from_fn(|r| {
                std::array::from_fn(|i| (seed.wrapping_mul(0x9e37_79b9 + (r * 8 + i) as u32 * 7919) >> 5) as f32 * 1e-3)
            });
            let want = x.map(|v| Portable.sum(v));
            assert_eq!(dispatch(Sums(x)).map(f32::to_bits), want.map(f32::to_bits));
        }
    }

    #[test]
    fn every_f16_is_widened_exactly() {
        for start in (0..=u16::MAX).step_by(LANES) {
            let group: [f16; LANES] = std::array::from_fn(|i| f16::from_bits(start + i as u16));
            let widened = dispatch(WidenF16(&group));
            for (half, wide) in group.iter().zip(widened) {
                assert!(half.to_f32().to_bits() == wide.to_bits() || (half.is_nan() && wide.is_nan()), "{half:?} became {wide:?}");
            }
        }
    }
}
