//! Random bits by place: any element of a SplitMix64 stream, without those before it.

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Element `position` of the stream whose start is a hash of `seed`.
pub fn bits(seed: u64, position: u64) -> u64 {
    let start = finish(seed.wrapping_add(GOLDEN));
    finish(start.wrapping_add(position.wrapping_add(1).wrapping_mul(GOLDEN)))
}

/// SplitMix64's finaliser.
fn finish(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
