//! This rank among the ranks of its model.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::device::collective::{Collective, Shard, Solo};
use crate::error::LoadError;

/// Which part of each layer this rank holds, and how it meets the others.
#[derive(Clone)]
pub struct Ranks {
    /// This rank's place.
    pub shard: Shard,
    /// The way to the other ranks.
    pub comm: Arc<dyn Collective>,
}

impl Ranks {
    /// The whole model on one device.
    pub fn solo() -> Self {
        Self { shard: Shard::WHOLE, comm: Arc::new(Solo) }
    }

    /// This rank's share of `count` heads, columns or rows. `field` is the configuration's name for them.
    pub fn share(&self, count: usize, field: &str) -> Result<Range<usize>, LoadError> {
        let Shard { rank, world_size } = self.shard;
        if !count.is_multiple_of(world_size) {
            return Err(indivisible(count, field, world_size));
        }
        let len = count / world_size;
        Ok(rank * len..(rank + 1) * len)
    }

    /// Like [`Self::share`], but where there are more ranks than items, neighbouring ranks hold the same item. Right for key/value
    /// heads: the query heads of those ranks all look at that one.
    pub fn share_or_replica(&self, count: usize, field: &str) -> Result<Range<usize>, LoadError> {
        let Shard { rank, world_size } = self.shard;
        if count >= world_size {
            return self.share(count, field);
        }
        if !world_size.is_multiple_of(count) {
            return Err(indivisible(count, field, world_size));
        }
        let item = rank / (world_size / count);
        Ok(item..item + 1)
    }
}

fn indivisible(count: usize, field: &str, world_size: usize) -> LoadError {
    let what = format!("is {count}, which does not divide evenly over {world_size} devices; choose another tensor-parallel size");
    LoadError::Config { field: field.into(), what }
}

impl fmt::Debug for Ranks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ranks").field("shard", &self.shard).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(rank: usize, world_size: usize) -> Ranks {
        Ranks { shard: Shard { rank, world_size }, ..Ranks::solo() }
    }

    #[test]
    fn shares_are_even_and_scarce_heads_are_held_twice() {
        let cases = [
            (8, 0, 1, Some(0..8), Some(0..8)),
            (8, 1, 2, Some(4..8), Some(4..8)),
            (2, 2, 4, None, Some(1..2)),
            (2, 1, 4, None, Some(0..1)),
            (3, 0, 2, None, None),
            (2, 0, 3, None, None),
        ];
        for (count, at, world_size, share, or_replica) in cases {
            assert_eq!(rank(at, world_size).share(count, "heads").ok(), share, "{count} over {world_size}");
            assert_eq!(rank(at, world_size).share_or_replica(count, "heads").ok(), or_replica, "{count} over {world_size}");
        }
    }

    #[test]
    fn an_uneven_split_names_the_field() {
        let error = rank(0, 3).share(4, "num_attention_heads").unwrap_err().to_string();
        assert!(error.contains("`num_attention_heads` is 4") && error.contains("3 devices"), "{error}");
    }
}
