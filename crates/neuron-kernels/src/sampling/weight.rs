//! Logits to weights, the same bits on every device.

/// e^((logit - highest) / temperature): how probable a token is beside the best. At most 1; 0 from 2^-45 down.
///
/// Made of single operations that every IEEE machine rounds alike, none of them fused; without a branch, so that loops over it are
/// done several logits at a time.
#[inline(always)]
pub fn weight(logit: f32, highest: f32, temperature: f32) -> f32 {
    let power = exp((logit - highest) / temperature);
    // Also where a bias lifted both to infinity.
    if logit == highest { 1.0 } else { power }
}

/// For z <= 0, within two units in the last place.
#[inline(always)]
fn exp(z: f32) -> f32 {
    const LOWEST: f32 = -31.25;
    /// Adding 1.5 * 2^23 leaves the nearest whole number in the low bits.
    const SHIFT: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first with so few bits that its multiples are exact.
    const LN_2: [f32; 2] = [0.693_145_75, 1.428_606_8e-6];
    const SERIES: [f32; 8] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let shifted = z * std::f32::consts::LOG2_E + SHIFT;
    let k = shifted - SHIFT;
    let r = z - k * LN_2[0] - k * LN_2[1];
    let mut p = SERIES[0];
    for coefficient in &SERIES[1..] {
        p = p * r + coefficient;
    }
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if z > LOWEST { p * power } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_exponential_of_the_distance() {
        for i in 0..100_000 {
            let z = -(i as f32) * 3.12e-4;
            let (got, want) = (f64::from(weight(z, 0.0, 1.0)), f64::from(z).exp());
            assert!((got - want).abs() <= 1.5e-7 * want, "{z}: {got} for {want}");
        }
        let cases = [(2.0, 2.0, 0.01, 1.0), (f32::NEG_INFINITY, 0.0, 1.0, 0.0), (-31.3, 0.0, 1.0, 0.0), (1.0, f32::INFINITY, 1.0, 0.0)];
        for (logit, highest, temperature, want) in cases {
            assert_eq!(weight(logit, highest, temperature), want);
        }
        assert_eq!(weight(f32::INFINITY, f32::INFINITY, 1.0), 1.0);
    }
}
