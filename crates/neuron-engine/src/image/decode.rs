//! From the bytes of a picture file to RGB rows. Alpha is dropped, grey replicated, palettes expanded, EXIF orientation applied.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageError as CodecError, ImageFormat, ImageReader, Limits};

use crate::image::ImageError;

/// 8-bit RGB, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width * 3` bytes.
    pub pixels: Vec<u8>,
}

/// Bytes that a decoder may take per pixel: 16-bit RGBA twice over.
const BYTES_PER_PIXEL_MAX: u64 = 16;

/// Decodes a PNG, JPEG, WebP or a GIF's first frame of at most `pixels_max` pixels. The size is checked before a pixel is decoded.
pub fn decode(bytes: &[u8], pixels_max: u64) -> Result<Rgb, ImageError> {
    let format = image::guess_format(bytes).map_err(|_| ImageError::UnknownFormat)?;
    if !matches!(format, ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP | ImageFormat::Gif) {
        return Err(ImageError::UnknownFormat);
    }
    let mut decoder = ImageReader::with_format(Cursor::new(bytes), format).into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > pixels_max {
        return Err(ImageError::TooManyPixels { width, height, pixels_max });
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(pixels_max.saturating_mul(BYTES_PER_PIXEL_MAX));
    decoder.set_limits(limits).map_err(broken)?;
    let orientation = decoder.orientation().map_err(broken)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(broken)?;
    picture.apply_orientation(orientation);
    let rgb = picture.into_rgb8();
    Ok(Rgb { width: rgb.width() as usize, height: rgb.height() as usize, pixels: rgb.into_raw() })
}

#[allow(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn broken(error: CodecError) -> ImageError {
    ImageError::Broken(error.to_string())
}

#[cfg(test)]
mod tests {
    use image::{Rgb as Pixel, RgbImage, Rgba, RgbaImage};

    use super::*;

    fn file(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    /// Red over blue, 16 x 32.
    fn two_halves() -> DynamicImage {
        RgbImage::from_fn(16, 32, |_, y| if y < 16 { Pixel([200, 0, 0]) } else { Pixel([0, 0, 200]) }).into()
    }

    fn at(picture: &Rgb, x: usize, y: usize) -> [u8; 3] {
        std::array::from_fn(|channel| picture.pixels[(y * picture.width + x) * 3 + channel])
    }

    fn near(found: [u8; 3], expected: [u8; 3]) -> bool {
        found.iter().zip(expected).all(|(&a, b)| a.abs_diff(b) < 12)
    }

    #[test]
    fn every_format_gives_the_same_picture() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif] {
            let found = decode(&file(&two_halves(), format), 1 << 20).unwrap();
            assert_eq!((found.width, found.height), (16, 32), "{format:?}");
            assert!(near(at(&found, 8, 4), [200, 0, 0]) && near(at(&found, 8, 28), [0, 0, 200]), "{format:?}");
        }
    }

    #[test]
    fn a_photograph_is_turned_as_its_exif_says() {
        let jpeg = file(&two_halves(), ImageFormat::Jpeg);
        // Orientation 6: turn right by 90 degrees to see it upright.
        let exif = b"\xff\xe1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        let turned = [&jpeg[..2], exif, &jpeg[2..]].concat();
        let found = decode(&turned, 1 << 20).unwrap();
        assert_eq!((found.width, found.height), (32, 16));
        assert!(near(at(&found, 28, 8), [200, 0, 0]) && near(at(&found, 4, 8), [0, 0, 200]), "the top is at the right now");
    }

    #[test]
    fn alpha_is_dropped_not_blended() {
        let picture = RgbaImage::from_pixel(4, 4, Rgba([10, 20, 30, 0]));
        assert_eq!(at(&decode(&file(&picture.into(), ImageFormat::Png), 100).unwrap(), 0, 0), [10, 20, 30]);
    }

    #[test]
    fn pixels_are_counted_before_they_are_decoded() {
        let refused = decode(&file(&two_halves(), ImageFormat::Png), 511).unwrap_err();
        assert_eq!(refused, ImageError::TooManyPixels { width: 16, height: 32, pixels_max: 511 });
    }
}
