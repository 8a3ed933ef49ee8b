//! The element types that weights and caches may be held in.

use super::lanes::{LANES, Lanes};
use half::{bf16, f16};

/// A float that is widened to f32 before any arithmetic.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    const ZERO: Self;

    fn widen(self) -> f32;
    /// Rounds to nearest, ties to even.
    fn narrow(x: f32) -> Self;
    fn load<L: Lanes>(lanes: L, group: &[Self; LANES]) -> L::V;

    /// Loads fewer than eight elements, the missing ones as zero.
    #[inline(always)]
    fn load_part<L: Lanes>(lanes: L, part: &[Self]) -> L::V {
        let mut group = [Self::ZERO; LANES];
        group[..part.len()].copy_from_slice(part);
        Self::load(lanes, &group)
    }
}

impl Element for f32 {
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, group: &[Self; LANES]) -> L::V {
        lanes.load(group)
    }
}

impl Element for bf16 {
    const ZERO: Self = bf16::ZERO;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        bf16::from_f32(x)
    }
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, group: &[Self; LANES]) -> L::V {
        lanes.load_bf16(group)
    }
}

impl Element for f16 {
    const ZERO: Self = f16::ZERO;

    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        f16::from_f32(x)
    }
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, group: &[Self; LANES]) -> L::V {
        lanes.load_f16(group)
    }
}
