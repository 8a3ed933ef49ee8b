//! `preprocessor_config.json`, and what it makes of a picture.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::LazyLock;

use serde::Deserialize;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::error::LoadError;
use crate::image::ImageError;
use crate::image::decode::{Rgb, decode};
use crate::image::encoded::{Detail, LOW_TOKENS_MAX};
use crate::image::grid::{Grid, PixelLimits, smart_resize};
use crate::image::resize::resize_bicubic;

/// A picture at the size the vision tower sees it.
#[derive(Debug)]
pub struct PreparedImage {
    /// Of its pixels and size; drawn with a key of this process, so that nobody can prepare two pictures with one hash.
    pub hash: u64,
    /// Its patches.
    pub grid: Grid,
    rgb: Rgb,
    patches: PatchSpec,
}

/// How a picture is cut.
#[derive(Clone, Debug, PartialEq)]
pub struct PatchSpec {
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Frames per patch; a still picture is repeated.
    pub temporal: usize,
    /// Patches per side that become one token.
    pub merge: usize,
    /// Per channel, of pixels in 0..1.
    pub mean: [f64; 3],
    /// Per channel.
    pub std: [f64; 3],
}

impl PreparedImage {
    /// Tokens this picture takes in a prompt.
    pub fn tokens(&self) -> usize {
        self.grid.tokens(self.patches.merge)
    }

    /// The picture after resizing, `height * width * 3` bytes.
    pub fn rgb(&self) -> &Rgb {
        &self.rgb
    }

    /// `[patches, 3 * temporal * patch * patch]`, f32: patches in merge order (block row, block column, row in block, column in
    /// block), within a patch channel, frame, row, column.
    pub fn pixel_values(&self) -> Vec<f32> {
        let PatchSpec { patch, temporal, merge, .. } = self.patches;
        let frame = patch * patch;
        let mut values = Vec::with_capacity(self.grid.patches() * 3 * temporal * frame);
        for (row, column) in merge_order(self.grid, merge) {
            for channel in 0..3 {
                let start = values.len();
                for y in row * patch..(row + 1) * patch {
                    let line = y * self.rgb.width + column * patch;
                    values.extend((line..line + patch).map(|pixel| self.normalise(channel, self.rgb.pixels[pixel * 3 + channel])));
                }
                for _ in 1..temporal {
                    values.extend_from_within(start..start + frame);
                }
            }
        }
        values
    }

    /// `(v - 255 mean) / (255 std)`, as the reference fuses rescaling into normalising.
    fn normalise(&self, channel: usize, value: u8) -> f32 {
        let (mean, std) = (self.patches.mean[channel] * 255.0, self.patches.std[channel] * 255.0);
        (f32::from(value) - mean as f32) / std as f32
    }
}

/// Row and column of each patch, in the order that puts the patches of one token side by side.
pub fn merge_order(grid: Grid, merge: usize) -> impl Iterator<Item = (usize, usize)> {
    let blocks = (0..grid.h / merge).flat_map(move |y| (0..grid.w / merge).map(move |x| (y, x)));
    blocks.flat_map(move |(y, x)| (0..merge).flat_map(move |dy| (0..merge).map(move |dx| (y * merge + dy, x * merge + dx))))
}

/// The preprocessing of one checkpoint.
#[derive(Clone, Debug)]
pub struct ImageProcessor {
    patches: PatchSpec,
    limits: PixelLimits,
}

/// The largest picture that is decoded at all. Anything above is shrunk below the models' own limits anyway.
pub const DECODED_PIXELS_MAX: u64 = 64 << 20;

static HASH_KEY: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0));

impl ImageProcessor {
    /// Reads `preprocessor_config.json`.
    pub fn from_folder(folder: &Path) -> Result<Self, LoadError> {
        let file = folder.join("preprocessor_config.json");
        let text = fs::read_to_string(&file).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => {
                LoadError::Missing { file: file.clone(), hint: "a vision model needs it; download the whole repository".into() }
            }
            _ => LoadError::Unreadable { file: file.clone(), source },
        })?;
        Self::parse(&text).map_err(|what| LoadError::Malformed { file, what })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let size = file.size.unwrap_or_default();
        let min = file.min_pixels.or(size.shortest_edge).ok_or("it names neither min_pixels nor size.shortest_edge")?;
        let max = file.max_pixels.or(size.longest_edge).ok_or("it names neither max_pixels nor size.longest_edge")?;
        let patches = PatchSpec {
            patch: file.patch_size,
            temporal: file.temporal_patch_size,
            merge: file.merge_size,
            mean: file.image_mean,
            std: file.image_std,
        };
        if patches.patch == 0 || patches.temporal == 0 || patches.merge == 0 || patches.std.contains(&0.0) || min > max {
            return Err(
                "patch_size, temporal_patch_size, merge_size and image_std must not be 0, and min_pixels not above max_pixels".into()
            );
        }
        Ok(Self { patches, limits: PixelLimits { min, max } })
    }

    /// How pictures are cut.
    pub fn patches(&self) -> &PatchSpec {
        &self.patches
    }

    /// The area pictures are brought into. Low detail only lowers the upper limit, and never below the checkpoint's lower one.
    pub fn limits(&self, detail: Detail) -> PixelLimits {
        let PixelLimits { min, max } = self.limits;
        match detail {
            Detail::Full => self.limits,
            Detail::Low => PixelLimits { min, max: max.min(LOW_TOKENS_MAX * (self.side_of_token() as u64).pow(2)).max(min) },
        }
    }

    /// Pixels along one side of the square that becomes one token.
    fn side_of_token(&self) -> usize {
        self.patches.patch * self.patches.merge
    }

    /// Decodes and resizes. Costs milliseconds to seconds of CPU: not for an async thread.
    pub fn prepare(&self, bytes: &[u8], detail: Detail) -> Result<PreparedImage, ImageError> {
        let source = decode(bytes, DECODED_PIXELS_MAX)?;
        let (height, width) = smart_resize(source.height as u32, source.width as u32, self.side_of_token(), self.limits(detail))?;
        let rgb = resize_bicubic(&source, height, width);
        let grid = Grid { h: height / self.patches.patch, w: width / self.patches.patch };
        let hash = xxh3_64_with_seed(&rgb.pixels, *HASH_KEY ^ (grid.h as u64) << 32 ^ grid.w as u64);
        Ok(PreparedImage { hash, grid, rgb, patches: self.patches.clone() })
    }
}

#[derive(Deserialize)]
struct File {
    patch_size: usize,
    temporal_patch_size: usize,
    merge_size: usize,
    #[serde(default = "half")]
    image_mean: [f64; 3],
    #[serde(default = "half")]
    image_std: [f64; 3],
    size: Option<Size>,
    min_pixels: Option<u64>,
    max_pixels: Option<u64>,
}

/// Pixel counts, despite the names.
#[derive(Default, Deserialize)]
struct Size {
    shortest_edge: Option<u64>,
    longest_edge: Option<u64>,
}

fn half() -> [f64; 3] {
    [0.5; 3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merge_order_keeps_the_patches_of_a_token_together() {
        let order: Vec<_> = merge_order(Grid { h: 2, w: 4 }, 2).collect();
        assert_eq!(order, [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]);
    }

    #[test]
    fn pixel_limits_override_the_size() {
        let text = |tail: &str| format!(r#"{{"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2, {tail}}}"#);
        let limits = |tail: &str| ImageProcessor::parse(&text(tail)).map(|processor| processor.limits(Detail::Full));
        let size = r#""size": {"shortest_edge": 10, "longest_edge": 20}"#;
        assert_eq!(limits(size), Ok(PixelLimits { min: 10, max: 20 }));
        assert_eq!(limits(&format!(r#"{size}, "max_pixels": 30"#)), Ok(PixelLimits { min: 10, max: 30 }));
        assert!(limits(r#""min_pixels": 1"#).unwrap_err().contains("longest_edge"));
    }

    #[test]
    fn low_detail_lowers_the_upper_limit_only_and_not_below_the_lower_one() {
        for (min, max, low) in
            [(65_536, 16_777_216, 87_040), (9_216, 102_400, 87_040), (9_216, 20_000, 20_000), (100_000, 200_000, 100_000)]
        {
            let text =
                format!(r#"{{"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2, "min_pixels": {min}, "max_pixels": {max}}}"#);
            let processor = ImageProcessor::parse(&text).unwrap();
            assert_eq!(processor.limits(Detail::Low), PixelLimits { min, max: low });
            assert_eq!(processor.limits(Detail::Full), PixelLimits { min, max });
        }
    }
}
