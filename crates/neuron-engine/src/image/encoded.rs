//! A picture as its client sent it.

/// The bytes of a picture file, and how closely the model is to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedImage {
    /// A PNG, JPEG, WebP or GIF.
    pub bytes: Vec<u8>,
    /// OpenAI's `detail`.
    pub detail: Detail,
}

/// How many pixels of a picture are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// As many as the checkpoint's own limits allow (`high`, `auto`, or nothing said).
    #[default]
    Full,
    /// Few: about [`LOW_TOKENS_MAX`] tokens (`low`).
    Low,
}

/// Image tokens of a picture at low detail. OpenAI's own models bill as many.
pub const LOW_TOKENS_MAX: u64 = 85;

impl Detail {
    /// Reads OpenAI's word; `None` for one that it does not have. `original` is how its newer models ask for all there is.
    pub fn of_word(word: &str) -> Option<Self> {
        match word {
            "low" => Some(Self::Low),
            "high" | "auto" | "original" => Some(Self::Full),
            _ => None,
        }
    }
}

impl From<Vec<u8>> for EncodedImage {
    /// At full detail.
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, detail: Detail::Full }
    }
}
