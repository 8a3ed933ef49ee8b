//! Who holds which block of the KV cache, and which block holds what.
//!
//! A block is either used (in at least one table) or free. A full, computed block may be *cached*: findable by its key, by
//! which later sequences share it. Cached blocks stay findable after their last table let go of them, until they are reused:
//! free blocks that hold nothing go first, then cached ones, least recently used first.

use std::collections::{BTreeMap, HashMap};

use super::prefix::BlockKey;

/// Blocks of one model's cache.
#[derive(Debug)]
pub struct BlockManager {
    block_size: usize,
    prefix_cache: bool,
    blocks: Vec<Block>,
    /// Free blocks that hold nothing findable; the last goes first.
    blank: Vec<u32>,
    /// Free blocks that are findable, by when they were freed.
    idle: BTreeMap<u64, u32>,
    /// Cached blocks, used or idle.
    index: HashMap<BlockKey, u32>,
    /// Counts releases: the time of the LRU order.
    tick: u64,
    counters: Counters,
}

#[derive(Clone, Debug, Default)]
struct Block {
    /// Tables that contain it.
    refs: u32,
    /// What it is found by, if cached.
    key: Option<BlockKey>,
    /// Its place in the LRU order while idle.
    freed_at: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    lookups: u64,
    hits: u64,
    tokens_saved: u64,
    evictions: u64,
}

/// What the prefix cache holds of a sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixHit {
    /// The blocks found, from the sequence's start.
    pub blocks: Vec<u32>,
    /// How many of them are free now, and so count against the free blocks once taken.
    pub idle: usize,
}

/// Figures for metrics. Blocks unless said otherwise; the last four only ever grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// All.
    pub total: usize,
    /// In at least one table.
    pub used: usize,
    /// In none; `used + free == total`.
    pub free: usize,
    /// Findable by the prefix cache, used or free.
    pub cached: usize,
    /// Sequences admitted for the first time.
    pub lookups: u64,
    /// Those of them that found at least one block.
    pub hits: u64,
    /// Prompt tokens that those did not have to compute.
    pub tokens_saved: u64,
    /// Cached blocks that were reused for something else.
    pub evictions: u64,
}

impl BlockManager {
    /// `total_blocks` free blocks of `block_size` tokens. Without `prefix_cache` nothing is ever shared.
    pub fn new(total_blocks: usize, block_size: usize, prefix_cache: bool) -> Self {
        assert!(block_size > 0, "a block holds at least one token");
        let count = u32::try_from(total_blocks).expect("block numbers are u32");
        Self {
            block_size,
            prefix_cache,
            blocks: vec![Block::default(); total_blocks],
            blank: (0..count).rev().collect(),
            idle: BTreeMap::new(),
            index: HashMap::new(),
            tick: 0,
            counters: Counters::default(),
        }
    }

    /// Tokens per block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Whether computed blocks are kept for later sequences.
    pub fn prefix_cache(&self) -> bool {
        self.prefix_cache
    }

    /// All blocks.
    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that can be allocated now.
    pub fn free(&self) -> usize {
        self.blank.len() + self.idle.len()
    }

    /// Blocks in at least one table.
    pub fn used(&self) -> usize {
        self.total() - self.free()
    }

    /// Blocks that `tokens` tokens fill, the last perhaps in part.
    pub fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_size)
    }

    /// Figures for metrics.
    pub fn stats(&self) -> CacheStats {
        let Counters { lookups, hits, tokens_saved, evictions } = self.counters;
        let (total, used, free) = (self.total(), self.used(), self.free());
        CacheStats { total, used, free, cached: self.index.len(), lookups, hits, tokens_saved, evictions }
    }

    /// The longest run of cached blocks from the first key on.
    pub fn lookup(&self, keys: &[BlockKey]) -> PrefixHit {
        let blocks: Vec<u32> = keys.iter().map_while(|key| self.index.get(key).copied()).collect();
        let idle = blocks.iter().filter(|&&block| self.blocks[block as usize].refs == 0).count();
        PrefixHit { blocks, idle }
    }

    /// Takes the blocks of a lookup into a further table. Nothing may have been allocated since the lookup.
    pub fn share(&mut self, hit: &PrefixHit) {
        for &number in &hit.blocks {
            let block = &mut self.blocks[number as usize];
            debug_assert!(block.key.is_some(), "only cached blocks are shared");
            if block.refs == 0 {
                self.idle.remove(&block.freed_at);
            }
            block.refs += 1;
        }
    }

    /// Counts a first admission that found `blocks` blocks.
    pub fn count_lookup(&mut self, blocks: usize) {
        self.counters.lookups += 1;
        self.counters.hits += u64::from(blocks > 0);
        self.counters.tokens_saved += (blocks * self.block_size) as u64;
    }

    /// A block to write into, or none when all are used.
    pub fn allocate(&mut self) -> Option<u32> {
        let number = match self.blank.pop() {
            Some(number) => number,
            None => self.evict()?,
        };
        self.blocks[number as usize].refs = 1;
        Some(number)
    }

    /// The least recently used idle block, no longer findable.
    fn evict(&mut self) -> Option<u32> {
        let (_, number) = self.idle.pop_first()?;
        if let Some(key) = self.blocks[number as usize].key.take() {
            self.index.remove(&key);
        }
        self.counters.evictions += 1;
        Some(number)
    }

    /// Makes a full, computed block findable. Of two blocks with the same content the first stays the one that is found.
    pub fn publish(&mut self, number: u32, key: BlockKey) {
        if self.prefix_cache && !self.index.contains_key(&key) {
            debug_assert!(self.blocks[number as usize].key.is_none(), "a block is published once");
            self.blocks[number as usize].key = Some(key);
            self.index.insert(key, number);
        }
    }

    /// Lets go of a whole table. Its tail is reused before its head, which more sequences have in common.
    pub fn release(&mut self, table: &[u32]) {
        for &number in table.iter().rev() {
            let block = &mut self.blocks[number as usize];
            block.refs -= 1;
            if block.refs > 0 {
                continue;
            }
            if block.key.is_some() {
                self.tick += 1;
                block.freed_at = self.tick;
                self.idle.insert(self.tick, number);
            } else {
                self.blank.push(number);
            }
        }
    }

    /// Compares the books with the tables of all sequences; says what is wrong. For tests: it looks at every block.
    pub fn check<'a>(&self, tables: impl IntoIterator<Item = &'a [u32]>) -> Result<(), String> {
        let mut holders = vec![0u32; self.total()];
        for table in tables {
            let mut seen = std::collections::HashSet::new();
            for &number in table {
                ensure(seen.insert(number), || format!("block {number} twice in one table"))?;
                holders[number as usize] += 1;
            }
        }
        self.check_blocks(&holders)?;
        self.check_free(&holders)
    }

    fn check_blocks(&self, holders: &[u32]) -> Result<(), String> {
        for (number, (block, &holders)) in self.blocks.iter().zip(holders).enumerate() {
            ensure(block.refs == holders, || format!("block {number} counts {} tables of {holders}", block.refs))?;
            ensure(holders < 2 || block.key.is_some(), || format!("block {number} is shared but not cached"))?;
            let found = block.key.is_none_or(|key| self.index.get(&key) == Some(&(number as u32)));
            ensure(found, || format!("block {number} is not found by its key"))?;
        }
        let keyed = self.blocks.iter().filter(|block| block.key.is_some()).count();
        ensure(keyed == self.index.len(), || format!("{keyed} blocks have keys, {} are indexed", self.index.len()))
    }

    fn check_free(&self, holders: &[u32]) -> Result<(), String> {
        let mut free: Vec<u32> = self.blank.iter().chain(self.idle.values()).copied().collect();
        free.sort_unstable();
        let expected: Vec<u32> = (0..self.total() as u32).filter(|&number| holders[number as usize] == 0).collect();
        ensure(free == expected, || format!("free list {free:?}, but no table holds {expected:?}"))?;
        let blank = self.blank.iter().all(|&number| self.blocks[number as usize].key.is_none());
        let idle = self
            .idle
            .iter()
            .all(|(&at, &number)| self.blocks[number as usize].key.is_some() && self.blocks[number as usize].freed_at == at);
        ensure(blank && idle, || "a free block is in the wrong list".into())
    }
}

fn ensure(truth: bool, complaint: impl FnOnce() -> String) -> Result<(), String> {
    if truth { Ok(()) } else { Err(complaint()) }
}
