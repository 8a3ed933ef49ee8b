//! The size a picture is given: sides in whole merged patches, the area within limits.

use crate::image::ImageError;

/// Rows and columns of patches of one picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Rows of patches.
    pub h: usize,
    /// Columns of patches.
    pub w: usize,
}

impl Grid {
    /// Patches in all.
    pub fn patches(self) -> usize {
        self.h * self.w
    }

    /// Tokens after merging `merge x merge` patches into one.
    pub fn tokens(self, merge: usize) -> usize {
        self.patches() / (merge * merge)
    }
}

/// The area a picture is brought into, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelLimits {
    /// Smaller pictures are enlarged.
    pub min: u64,
    /// Larger pictures are shrunk.
    pub max: u64,
}

/// The longer side over the shorter, at most.
const ASPECT_MAX: f64 = 200.0;

/// Height and width, both multiples of `factor`, of about the same shape and with an area within `limits`.
///
/// In f64 with halves rounded to even, as the reference does in Python.
pub fn smart_resize(height: u32, width: u32, factor: usize, limits: PixelLimits) -> Result<(usize, usize), ImageError> {
    let (h, w, f) = (f64::from(height), f64::from(width), factor as f64);
    if h < 1.0 || w < 1.0 || h.max(w) / h.min(w) > ASPECT_MAX {
        return Err(ImageError::TooNarrow { width, height });
    }
    let near = |side: f64| (side / f).round_ties_even() * f;
    let (a, b) = (near(h), near(w));
    let (a, b) = if a * b > limits.max as f64 {
        let shrink = (h * w / limits.max as f64).sqrt();
        let below = |side: f64| f.max((side / shrink / f).floor() * f);
        (below(h), below(w))
    } else if a * b < limits.min as f64 {
        let grow = (limits.min as f64 / (h * w)).sqrt();
        let above = |side: f64| (side * grow / f).ceil() * f;
        (above(h), above(w))
    } else {
        (a, b)
    };
    Ok((a as usize, b as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_go_to_even_and_areas_into_the_limits() {
        let limits = PixelLimits { min: 65_536, max: 16_777_216 };
        for (height, width, expected) in
            [(256, 256, (256, 256)), (48 + 256, 80 + 256, (320, 320)), (10, 10, (256, 256)), (9000, 9000, (4096, 4096))]
        {
            assert_eq!(smart_resize(height, width, 32, limits), Ok(expected), "{height} x {width}");
        }
        assert_eq!(smart_resize(1, 201, 32, limits), Err(ImageError::TooNarrow { width: 201, height: 1 }));
    }
}
