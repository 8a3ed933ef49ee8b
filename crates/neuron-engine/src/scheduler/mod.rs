//! Which sequences compute which tokens in the next step.
//!
//! Pure: no tensors, no clock, no randomness; the same calls give the same steps. The engine's loop is
//! `schedule -> execute -> commit`. Order within a step: every running sequence that decodes, one token each; then the prompts
//! of running sequences, in chunks; then newcomers, all under one token budget. Sequences stand in order of priority
//! (lower first), then of arrival. A newcomer that does not fit holds back those behind it, so nothing starves within a class.
//!
//! With [`Limits::lookahead`] a sequence is planned again while its last chunk is being computed. If that chunk draws a token,
//! the next chunk is that token, whatever it will be ([`Chunk::pending`]): the device knows it, and nobody else needs to.
//!
//! ```text
//! plan    a[5..6]  a[6..7]?  a[7..8]?  ...       ? starts from a token that is still being drawn
//! device           a[5..6]   a[6..7]   a[7..8]
//! commit                     token 6   token 7
//! ```
//!
//! Where a plan needs to know more than that a token comes, it waits for the commit: when the answer would be full, before blocks
//! are taken from a sequence that is being computed, and when a draw needs the answer so far. Sequences with such draws wait for
//! each other, too, and so share their steps: they would otherwise fall into two groups that take turns, each half as fast.

mod entry;
pub mod policy;
pub mod step;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::cache::block_manager::{BlockManager, PrefixHit};
use crate::cache::prefix::extend_keys;
use crate::sequence::{Sequence, SequenceId, SequenceMap, SequenceStatus};

use entry::{Entry, Wish};
pub use policy::Limits;
use policy::Place;
pub use step::{Chunk, Step};

/// Why a sequence was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// Try again later.
    #[error("{waiting} sequences wait already")]
    Full {
        /// How many.
        waiting: usize,
    },
    /// Even alone it could not finish.
    #[error(
        "needs {needed_blocks} KV blocks at its longest, and the cache has {total_blocks}; ask for fewer tokens or load with more memory"
    )]
    NeverFits {
        /// Blocks of its longest form.
        needed_blocks: usize,
        /// Blocks of the cache.
        total_blocks: usize,
    },
    /// There is nothing to compute.
    #[error("the prompt has no tokens")]
    Empty,
    /// The id is taken.
    #[error("sequence {} is known already", .0.0)]
    Duplicate(SequenceId),
}

/// Owns all sequences from `add` to `finish`, and the block tables.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    blocks: BlockManager,
    entries: SequenceMap<Entry>,
    /// In order of place.
    running: Vec<Place>,
    waiting: BTreeSet<Place>,
    arrivals: u64,
}

impl Scheduler {
    /// An empty scheduler that hands out `blocks`. `running_max` never exceeds `step_tokens_max`.
    pub fn new(limits: Limits, blocks: BlockManager) -> Self {
        let limits = limits.sane();
        Self { limits, blocks, entries: SequenceMap::default(), running: Vec::new(), waiting: BTreeSet::new(), arrivals: 0 }
    }

    /// Puts a sequence behind all others of its class.
    pub fn add(&mut self, sequence: Sequence) -> Result<(), AddError> {
        self.admissible(&sequence)?;
        let place = Place { priority: sequence.priority, arrival: self.arrivals, id: sequence.id };
        let mut entry = Entry::new(sequence, place);
        if self.blocks.prefix_cache() {
            extend_keys(&mut entry.keys, &entry.sequence, self.blocks.block_size());
        }
        self.arrivals += 1;
        self.waiting.insert(place);
        self.entries.insert(place.id, entry);
        Ok(())
    }

    fn admissible(&self, sequence: &Sequence) -> Result<(), AddError> {
        let (needed_blocks, total_blocks) = (self.blocks_at_most(sequence), self.blocks.total());
        match () {
            () if sequence.tokens.is_empty() => Err(AddError::Empty),
            () if self.entries.contains_key(&sequence.id) => Err(AddError::Duplicate(sequence.id)),
            () if needed_blocks > total_blocks => Err(AddError::NeverFits { needed_blocks, total_blocks }),
            () if self.waiting.len() >= self.limits.waiting_max => Err(AddError::Full { waiting: self.waiting.len() }),
            () => Ok(()),
        }
    }

    fn blocks_at_most(&self, sequence: &Sequence) -> usize {
        self.blocks.blocks_for(sequence.total_len_max.max(sequence.tokens.len()))
    }

    /// Plans the next step. A sequence that is being computed is left alone until that chunk is committed; with lookahead, until
    /// the chunk before it is. An empty step means that nothing can be planned now.
    pub fn schedule(&mut self) -> Step {
        let mut step = Step::new(&self.limits);
        step.history_waits = self.running.iter().any(|place| self.entries[&place.id].draws_history());
        self.schedule_decodes(&mut step);
        self.schedule_prefills(&mut step);
        if step.preempted.is_empty() {
            self.schedule_newcomers(&mut step);
        }
        step
    }

    fn schedule_decodes(&mut self, step: &mut Step) {
        let mut at = 0;
        while at < self.running.len() && step.budget() > 0 {
            let id = self.running[at].id;
            if self.wish(id, step) == Wish::Decode && self.grow(id, step) {
                self.push_chunk(id, step);
            }
            // It may itself have been preempted; then another stands in its place.
            at += usize::from(self.running.get(at).is_some_and(|place| place.id == id));
        }
    }

    fn schedule_prefills(&mut self, step: &mut Step) {
        for at in 0..self.running.len() {
            let id = self.running[at].id;
            // One that decodes in this step already wishes to decode again, never to prefill: nobody gets two chunks.
            if step.budget() > 0 && self.wish(id, step) == Wish::Prefill {
                self.push_chunk(id, step);
            }
        }
    }

    /// What a running sequence could do in this step.
    fn wish(&self, id: SequenceId, step: &Step) -> Wish {
        let entry = &self.entries[&id];
        if step.leaves_out(&entry.sequence) { Wish::Wait } else { entry.wish(self.limits.lookahead) }
    }

    fn schedule_newcomers(&mut self, step: &mut Step) {
        let mut growing = self.running.iter().filter(|place| self.can_grow(place.id)).count();
        while step.budget() > 0 && self.running.len() < self.limits.running_max {
            let Some(place) = self.waiting.first().copied() else { break };
            if step.leaves_out(&self.entries[&place.id].sequence) || !self.admit(place, growing) {
                break;
            }
            growing += usize::from(self.can_grow(place.id));
            step.admitted.push(place.id);
            self.push_chunk(place.id, step);
        }
    }

    fn can_grow(&self, id: SequenceId) -> bool {
        let sequence = &self.entries[&id].sequence;
        sequence.blocks.len() < self.blocks_at_most(sequence)
    }

    /// Gives a waiting sequence blocks for all its tokens, so that a prefill never stops for want of one.
    fn admit(&mut self, place: Place, growing: usize) -> bool {
        let hit = self.prefix_hit(place.id);
        let sequence = &self.entries[&place.id].sequence;
        let fresh = self.blocks.blocks_for(sequence.tokens.len()) - hit.blocks.len();
        if !policy::may_admit(fresh + hit.idle, self.blocks.free(), growing) {
            return false;
        }
        self.blocks.share(&hit);
        let found = hit.blocks.len();
        let mut table = hit.blocks;
        table.extend((0..fresh).map_while(|_| self.blocks.allocate()));
        self.start(place, table, found);
        true
    }

    /// What the cache holds of a sequence. At least its last token is left to compute, because its logits are wanted, and the
    /// block that it is written to is never a shared one. Nor does the cache have logits for a prompt that is to be scored.
    fn prefix_hit(&self, id: SequenceId) -> PrefixHit {
        let entry = &self.entries[&id];
        let usable = entry.sequence.reusable() / self.blocks.block_size();
        self.blocks.lookup(&entry.keys[..usable.min(entry.keys.len())])
    }

    /// Moves a sequence from waiting to running with `table`, whose first `found` blocks are computed.
    fn start(&mut self, place: Place, table: Vec<u32>, found: usize) {
        self.waiting.remove(&place);
        let at = self.running.partition_point(|other| *other < place);
        self.running.insert(at, place);
        let Some(entry) = self.entries.get_mut(&place.id) else { return };
        entry.published = found;
        entry.sequence.blocks = Arc::new(table);
        entry.sequence.computed = found * self.blocks.block_size();
        if entry.sequence.status == SequenceStatus::Waiting {
            entry.sequence.cached = entry.sequence.computed;
            self.blocks.count_lookup(found);
        }
        entry.sequence.status = SequenceStatus::Running;
    }

    /// Makes sure that the next token of a running sequence has a block, at the cost of the last one if need be. False when it has
    /// none: it was preempted itself, or the last one is being computed. That one is then held back, so that it can give way in the
    /// next step; taking from another, or from this one, would turn the order of places around.
    fn grow(&mut self, id: SequenceId, step: &mut Step) -> bool {
        loop {
            let Some(entry) = self.entries.get_mut(&id) else { return false };
            if entry.planned() < entry.sequence.blocks.len() * self.blocks.block_size() {
                return true;
            }
            if let Some(block) = self.blocks.allocate() {
                Arc::make_mut(&mut entry.sequence.blocks).push(block);
                continue;
            }
            let Some(victim) = policy::victim(&self.running) else { return false };
            if !self.entries[&victim.id].is_idle() {
                step.held = Some(victim.id);
                return false;
            }
            self.preempt(victim);
            step.preempted.push(victim.id);
            if victim.id == id {
                return false;
            }
        }
    }

    /// Takes all blocks from a running sequence and lets it wait to be computed anew.
    fn preempt(&mut self, place: Place) {
        self.running.retain(|other| *other != place);
        self.waiting.insert(place);
        let Some(entry) = self.entries.get_mut(&place.id) else { return };
        self.blocks.release(&std::mem::take(&mut entry.sequence.blocks));
        entry.sequence.computed = 0;
        entry.sequence.status = SequenceStatus::Preempted;
    }

    fn push_chunk(&mut self, id: SequenceId, step: &mut Step) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let chunk = entry.next_chunk(step.budget(), step.scores());
        entry.in_flight.push_back(chunk);
        step.push(chunk, entry.sequence.scores(chunk.start, chunk.end()).len());
    }

    /// Books the oldest chunk in flight of a sequence, `len` tokens, and the token drawn if it sampled. Blocks that are full now can
    /// be found by later sequences. A sequence that was finished meanwhile is ignored.
    pub fn commit(&mut self, id: SequenceId, len: usize, token: Option<u32>) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let chunk = entry.in_flight.pop_front();
        debug_assert_eq!(chunk.map(|chunk| chunk.len), Some(len), "the chunk committed is the chunk scheduled");
        entry.sequence.computed += len;
        entry.sequence.score_from = entry.sequence.scores(0, entry.sequence.computed).end;
        debug_assert!(token.is_none() || entry.sequence.remaining() == 0, "only the last token's logits are sampled");
        if self.blocks.prefix_cache() {
            extend_keys(&mut entry.keys, &entry.sequence, self.blocks.block_size());
            let full = entry.sequence.computed / self.blocks.block_size();
            for index in entry.published..full {
                self.blocks.publish(entry.sequence.blocks[index], entry.keys[index]);
            }
            entry.published = full;
        }
        entry.sequence.tokens.extend(token);
    }

    /// Ends a sequence, running or waiting, and hands it back. Its cached blocks stay findable until they are reused. Chunks of
    /// it in flight may still write to its blocks: harmless, as a device runs its steps in order and only published blocks are shared.
    pub fn finish(&mut self, id: SequenceId) -> Option<Sequence> {
        let entry = self.entries.remove(&id)?;
        self.waiting.remove(&entry.place);
        self.running.retain(|place| *place != entry.place);
        self.blocks.release(&entry.sequence.blocks);
        Some(entry.sequence)
    }

    /// A sequence between `add` and `finish`.
    pub fn sequence(&self, id: SequenceId) -> Option<&Sequence> {
        self.entries.get(&id).map(|entry| &entry.sequence)
    }

    /// Steps that may be under way at a time. More would only cut the running sequences into groups that take turns.
    pub fn steps_in_flight_max(&self) -> usize {
        if self.limits.lookahead { 2 } else { 1 }
    }

    /// Sequences that hold blocks.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait for blocks.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// True when no sequence is left.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The blocks.
    pub fn blocks(&self) -> &BlockManager {
        &self.blocks
    }

    /// Compares all books with each other; says what is wrong. For tests: it looks at everything.
    pub fn check(&self) -> Result<(), String> {
        self.blocks.check(self.entries.values().map(|entry| entry.sequence.blocks.as_slice()))?;
        if self.running.len() + self.waiting.len() != self.entries.len() || !self.running.is_sorted() {
            return Err("the queues do not hold every sequence once, in order".into());
        }
        self.entries.values().try_for_each(|entry| self.check_entry(entry))
    }

    fn check_entry(&self, entry: &Entry) -> Result<(), String> {
        let Entry { sequence, place, .. } = entry;
        let runs = sequence.status == SequenceStatus::Running;
        let queued = if runs { self.running.contains(place) } else { self.waiting.contains(place) };
        let room = sequence.blocks.len() * self.blocks.block_size();
        let booked = if runs { entry.planned() <= room } else { room == 0 && sequence.computed == 0 && entry.is_idle() };
        if !queued || !booked {
            return Err(format!("sequence {} is {:?} with {} planned in {room}", sequence.id.0, sequence.status, entry.planned()));
        }
        entry.check(self.limits.lookahead)
    }
}
