//! Pictures on their way to the vision tower: decode, resize, cut into patches, count positions. Bit for bit what Hugging Face
//! transformers does (`Qwen2VLImageProcessorFast`, `get_rope_index`).

pub mod decode;
pub mod encoded;
pub mod features;
pub mod grid;
pub mod positions;
pub mod processor;
pub mod resize;

pub use encoded::{Detail, EncodedImage};
pub use features::{FeatureCache, ImageFeatures};
pub use grid::{Grid, PixelLimits, smart_resize};
pub use processor::{ImageProcessor, PreparedImage};

/// Why a picture cannot be used. Every message is for the person who sent it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Not one of the formats.
    #[error("is not a PNG, JPEG, WebP or GIF picture")]
    UnknownFormat,
    /// Starts like a picture, but cannot be read.
    #[error("cannot be decoded: {0}")]
    Broken(String),
    /// Larger than anyone should send.
    #[error("has {width} x {height} pixels; at most {pixels_max} pixels are accepted: send a smaller picture")]
    TooManyPixels {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
        /// The limit.
        pixels_max: u64,
    },
    /// A strip.
    #[error("is {width} x {height} pixels; the longer side may be at most 200 times the shorter")]
    TooNarrow {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
    },
}
