//! Bicubic resize of 8-bit pictures in integers, bit for bit as torch's antialiased uint8 kernel computes it.
//!
//! Two passes, columns first; each rounds and clamps to 8 bits, so an overshoot at an edge is cut between them: a float resize
//! cannot give the same numbers.

use crate::image::decode::Rgb;

/// Resizes to `height x width`. A pass whose size does not change is left out.
pub fn resize_bicubic(source: &Rgb, height: usize, width: usize) -> Rgb {
    let wide = if source.width == width { source.clone() } else { resize_columns(source, width) };
    if wide.height == height { wide } else { resize_rows(&wide, height) }
}

/// For each output index: the first input index, and integer weights scaled by `1 << shift`.
struct Weights {
    taps: Vec<(usize, Vec<i64>)>,
    shift: u32,
}

/// Weights have at most this many bits after the point.
const SHIFT_MAX: u32 = 22;

impl Weights {
    fn new(input: usize, output: usize) -> Self {
        let float: Vec<(usize, Vec<f64>)> = (0..output).map(|i| float_taps(i, input, output)).collect();
        let largest = float.iter().flat_map(|(_, weights)| weights).fold(0.0, |a: f64, &b| a.max(b));
        let fills_15_bits = |shift: &u32| (0.5 + largest * f64::from(1u32 << (shift + 1))).trunc() >= f64::from(1 << 15);
        let shift = (0..SHIFT_MAX).find(fills_15_bits).unwrap_or(SHIFT_MAX);
        let scaled = |weight: f64| (weight * f64::from(1u32 << shift) + 0.5f64.copysign(weight)).trunc() as i64;
        let taps = float.into_iter().map(|(first, weights)| (first, weights.into_iter().map(scaled).collect())).collect();
        Self { taps, shift }
    }

    fn apply(&self, weights: &[i64], pixels: impl Iterator<Item = u8>) -> u8 {
        let sum: i64 = weights.iter().zip(pixels).map(|(weight, pixel)| weight * i64::from(pixel)).sum();
        ((sum + (1 << self.shift >> 1)) >> self.shift).clamp(0, 255) as u8
    }
}

/// The inputs under the kernel centred on output `i`, weighted to sum 1. Shrinking widens the kernel: that is the antialiasing.
fn float_taps(i: usize, input: usize, output: usize) -> (usize, Vec<f64>) {
    let scale = input as f64 / output as f64;
    let stretch = scale.max(1.0);
    let centre = (i as f64 + 0.5) * scale;
    let first = (centre - 2.0 * stretch + 0.5).trunc().max(0.0) as usize;
    let last = input.min((centre + 2.0 * stretch + 0.5).trunc() as usize);
    let weights: Vec<f64> = (first..last).map(|j| keys_cubic((j as f64 - centre + 0.5) / stretch)).collect();
    let sum: f64 = weights.iter().sum();
    (first, weights.into_iter().map(|weight| weight / sum).collect())
}

/// Keys' cubic with a = -0.5 (Catmull-Rom).
fn keys_cubic(x: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        (1.5 * x - 2.5) * x * x + 1.0
    } else if x < 2.0 {
        ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    } else {
        0.0
    }
}

fn resize_columns(source: &Rgb, width: usize) -> Rgb {
    let weights = Weights::new(source.width, width);
    let mut pixels = Vec::with_capacity(source.height * width * 3);
    for row in source.pixels.chunks_exact(source.width * 3) {
        for (first, taps) in &weights.taps {
            for channel in 0..3 {
                pixels.push(weights.apply(taps, row[first * 3 + channel..].iter().step_by(3).copied()));
            }
        }
    }
    Rgb { width, height: source.height, pixels }
}

fn resize_rows(source: &Rgb, height: usize) -> Rgb {
    let weights = Weights::new(source.height, height);
    let stride = source.width * 3;
    let mut pixels = Vec::with_capacity(height * stride);
    for (first, taps) in &weights.taps {
        for column in 0..stride {
            pixels.push(weights.apply(taps, source.pixels[first * stride + column..].iter().step_by(stride).copied()));
        }
    }
    Rgb { width: source.width, height, pixels }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_picture_stays_flat_at_any_size() {
        let source = Rgb { width: 7, height: 5, pixels: [9, 200, 255].repeat(35) };
        for (height, width) in [(5, 7), (32, 32), (2, 3), (5, 64), (64, 7)] {
            let resized = resize_bicubic(&source, height, width);
            assert_eq!((resized.height, resized.width), (height, width));
            assert_eq!(resized.pixels, [9, 200, 255].repeat(height * width));
        }
    }
}
