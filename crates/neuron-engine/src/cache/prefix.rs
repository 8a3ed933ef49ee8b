//! Keys of the prefix cache: what a block holds, and all that came before it, as one number.

use xxhash_rust::xxh3::xxh3_128;

use crate::sequence::{ImageSpan, Sequence};

/// Names the content of a full block together with everything before it, so that equal blocks behind different prefixes differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockKey(u128);

impl BlockKey {
    /// The parent of every first block.
    pub fn root(salt: u64) -> Self {
        Self(xxh3_128(&salt.to_le_bytes()))
    }

    /// The key of the block that holds `tokens`, starts at token `start` of its sequence, and follows the block of this key.
    /// Image tokens are all alike, so the pictures count by content and by where they start, seen from the block.
    pub fn child(self, tokens: &[u32], start: usize, images: &[ImageSpan]) -> Self {
        let mut bytes = Vec::with_capacity(16 + 4 * tokens.len());
        bytes.extend_from_slice(&self.0.to_le_bytes());
        for token in tokens {
            bytes.extend_from_slice(&token.to_le_bytes());
        }
        for image in images.iter().filter(|image| image.overlaps(start, start + tokens.len())) {
            bytes.extend_from_slice(&image.hash.to_le_bytes());
            bytes.extend_from_slice(&(image.start as i64 - start as i64).to_le_bytes());
            bytes.extend_from_slice(&(image.len as u64).to_le_bytes());
        }
        Self(xxh3_128(&bytes))
    }
}

/// Appends the keys of those full blocks of `sequence` that `keys` does not name yet.
pub fn extend_keys(keys: &mut Vec<BlockKey>, sequence: &Sequence, block_size: usize) {
    for (index, tokens) in sequence.tokens.chunks_exact(block_size).enumerate().skip(keys.len()) {
        let parent = keys.last().copied().unwrap_or_else(|| BlockKey::root(sequence.salt));
        keys.push(parent.child(tokens, index * block_size, &sequence.images));
    }
}
