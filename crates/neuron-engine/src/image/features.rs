//! What the vision tower made of pictures seen lately, by content: the same picture in the next turn costs nothing.

use std::collections::HashMap;

use candle_core::{Result, Tensor};

/// The tower's output for some pictures: N merged patches, one row each.
#[derive(Clone, Debug)]
pub struct ImageFeatures {
    /// What stands in for the embeddings of the image tokens, `[N, H]`.
    pub merged: Tensor,
    /// What is added after the first decoder layers, `[N, H]` each.
    pub deepstack: Vec<Tensor>,
}

impl ImageFeatures {
    /// Rows `start..start + len`.
    pub fn rows(&self, start: usize, len: usize) -> Result<Self> {
        let part = |features: &Tensor| features.narrow(0, start, len);
        Ok(Self { merged: part(&self.merged)?, deepstack: self.deepstack.iter().map(part).collect::<Result<_>>()? })
    }

    /// All rows, one after the other. `parts` is not empty.
    pub fn cat(parts: &[Self]) -> Result<Self> {
        let layers = parts.first().map_or(0, |part| part.deepstack.len());
        let layer = |k: usize| Tensor::cat(&parts.iter().map(|part| &part.deepstack[k]).collect::<Vec<_>>(), 0);
        Ok(Self {
            merged: Tensor::cat(&parts.iter().map(|part| &part.merged).collect::<Vec<_>>(), 0)?,
            deepstack: (0..layers).map(layer).collect::<Result<_>>()?,
        })
    }

    fn bytes(&self) -> usize {
        let size = |features: &Tensor| features.elem_count() * features.dtype().size_in_bytes();
        size(&self.merged) + self.deepstack.iter().map(size).sum::<usize>()
    }
}

/// Least recently used pictures go when the cache is full.
pub struct FeatureCache {
    entries: HashMap<u64, Entry>,
    bytes: usize,
    bytes_max: usize,
    clock: u64,
}

struct Entry {
    features: ImageFeatures,
    last_used: u64,
}

impl FeatureCache {
    /// Holds at most `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self { entries: HashMap::new(), bytes: 0, bytes_max, clock: 0 }
    }

    /// The features of the picture with this hash.
    pub fn get(&mut self, hash: u64) -> Option<ImageFeatures> {
        self.clock += 1;
        let entry = self.entries.get_mut(&hash)?;
        entry.last_used = self.clock;
        Some(entry.features.clone())
    }

    /// Keeps the features; forgets others if there are too many.
    pub fn put(&mut self, hash: u64, features: ImageFeatures) {
        self.clock += 1;
        self.bytes += features.bytes();
        if let Some(old) = self.entries.insert(hash, Entry { features, last_used: self.clock }) {
            self.bytes -= old.features.bytes();
        }
        while self.bytes > self.bytes_max {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.last_used).map(|(hash, _)| *hash);
            let Some(entry) = oldest.and_then(|hash| self.entries.remove(&hash)) else { break };
            self.bytes -= entry.features.bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn the_least_recently_used_picture_goes_first() {
        let features = || ImageFeatures { merged: Tensor::zeros((2, 4), DType::F32, &Device::Cpu).unwrap(), deepstack: vec![] };
        let mut cache = FeatureCache::new(2 * 32);
        cache.put(1, features());
        cache.put(2, features());
        assert!(cache.get(1).is_some());
        cache.put(3, features());
        assert_eq!([1, 2, 3].map(|hash| cache.get(hash).is_some()), [true, false, true]);
    }
}
