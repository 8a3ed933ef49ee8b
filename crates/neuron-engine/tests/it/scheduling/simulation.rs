//! A scheduler and a make-believe device, with everything that must always hold checked at every step.

use std::collections::{BTreeMap, VecDeque};

use neuron_engine::batch::Batch;
use neuron_engine::cache::block_manager::BlockManager;
use neuron_engine::scheduler::{AddError, Chunk, Limits, Scheduler, Step};
use neuron_engine::sequence::{Sequence, SequenceId, SequenceStatus};

use super::device::Device;

/// What a simulation starts from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) blocks: usize,
    pub(crate) block_size: usize,
    pub(crate) prefix_cache: bool,
    pub(crate) limits: Limits,
    pub(crate) vocabulary: u32,
    /// A token that ends an answer.
    pub(crate) end_token: Option<u32>,
}

pub(crate) struct Simulation {
    pub(crate) scheduler: Scheduler,
    device: Device,
    limits: Limits,
    end_token: Option<u32>,
    /// Every sequence not ended yet, with its class and its turn in it.
    live: BTreeMap<SequenceId, (u8, u64)>,
    /// Those whose prompt is to be scored, with the places scored so far.
    scored: BTreeMap<SequenceId, Vec<u64>>,
    added: u64,
    /// Steps that ran but are not committed, oldest first.
    in_flight: VecDeque<Vec<Outcome>>,
    tokens_saved: u64,
}

struct Outcome {
    chunk: Chunk,
    token: Option<u32>,
    /// The places of the prompt's tokens that were scored.
    scored: Vec<u64>,
}

/// A sequence as it stood before a step was planned.
struct Before {
    status: SequenceStatus,
    decodes: bool,
    prefills: bool,
    in_flight: bool,
    /// Where its next chunk starts.
    start: usize,
    /// Its tokens, those being drawn included.
    len: usize,
}

impl Simulation {
    pub(crate) fn new(setup: Setup) -> Self {
        let Setup { blocks, block_size, prefix_cache, limits, vocabulary, end_token } = setup;
        Self {
            scheduler: Scheduler::new(limits, BlockManager::new(blocks, block_size, prefix_cache)),
            device: Device::new(blocks * block_size, vocabulary),
            limits,
            end_token,
            live: BTreeMap::new(),
            scored: BTreeMap::new(),
            added: 0,
            in_flight: VecDeque::new(),
            tokens_saved: 0,
        }
    }

    pub(crate) fn add(&mut self, sequence: Sequence) -> Result<(), AddError> {
        let (id, class, is_scored) = (sequence.id, sequence.priority, sequence.is_scored());
        self.scheduler.add(sequence)?;
        if is_scored {
            self.scored.insert(id, Vec::new());
        }
        self.live.insert(id, (class, self.added));
        self.added += 1;
        self.check_books();
        Ok(())
    }

    /// Plans a step and runs it; its results wait for `commit`.
    pub(crate) fn plan(&mut self) -> Step {
        let before: BTreeMap<SequenceId, Before> = self.live.keys().map(|&id| (id, self.before(id))).collect();
        let step = self.scheduler.schedule();
        self.check_step(&before, &step);
        self.check_books();
        // As in the engine, an empty step goes nowhere.
        if !step.is_empty() {
            self.run(&step);
        }
        step
    }

    /// Books the oldest step that ran; hands back the sequences that ended with it.
    pub(crate) fn commit(&mut self) -> Vec<Sequence> {
        let mut ended = Vec::new();
        for Outcome { chunk, token, scored } in self.in_flight.pop_front().unwrap_or_default() {
            self.scheduler.commit(chunk.id, chunk.len, token);
            self.check_scores(chunk.id, scored, token.is_some());
            let is_end = token.is_some() && token == self.end_token;
            if self.scheduler.sequence(chunk.id).is_some_and(|sequence| sequence.is_full() || is_end) {
                ended.extend(self.finish(chunk.id));
            }
        }
        self.check_books();
        ended
    }

    /// Each token of a prompt is scored once, in order, and all before the answer begins; where nobody asked, none is.
    fn check_scores(&mut self, id: SequenceId, scored: Vec<u64>, answered: bool) {
        let Some(sequence) = self.scheduler.sequence(id) else { return };
        let Some(known) = self.scored.get_mut(&id) else { return assert!(scored.is_empty(), "{id:?} was not to be scored") };
        known.extend(scored);
        let due = if answered { sequence.prompt_len } else { sequence.score_from };
        assert!(known.iter().copied().eq(1..due as u64), "{id:?} has the scores {known:?}");
    }

    /// Ends a sequence, whatever it does.
    pub(crate) fn finish(&mut self, id: SequenceId) -> Option<Sequence> {
        self.live.remove(&id);
        let sequence = self.scheduler.finish(id)?;
        self.device.compare_answer(&sequence).unwrap();
        self.check_books();
        Some(sequence)
    }

    /// True when as many steps are under way as an engine would have.
    pub(crate) fn is_busy(&self) -> bool {
        self.in_flight.len() >= self.scheduler.steps_in_flight_max()
    }

    /// Steps as an engine would until all is done, within a bound that only starvation or thrashing could break; hands back what
    /// ended.
    pub(crate) fn drain(&mut self) -> Vec<Sequence> {
        let mut ended = Vec::new();
        while !self.in_flight.is_empty() {
            ended.extend(self.commit());
        }
        // The first running sequence gains a token a step, or waits for one commit and then gains it, and is never preempted; a more
        // urgent one may displace it.
        let longest: usize = self.sequences().map(|sequence| sequence.total_len_max).sum();
        let mut steps_left = self.scheduler.steps_in_flight_max() * longest * (self.live.len() + 1);
        while !self.live.is_empty() {
            steps_left = steps_left.checked_sub(1).expect("some sequence starves");
            let planned = !self.plan().is_empty();
            assert!(planned || !self.in_flight.is_empty(), "sequences are left, but nothing runs");
            if !planned || self.is_busy() {
                ended.extend(self.commit());
            }
        }
        while !self.in_flight.is_empty() {
            ended.extend(self.commit());
        }
        assert_eq!(self.scheduler.blocks().used(), 0, "blocks outlive their sequences");
        ended
    }

    pub(crate) fn live(&self) -> impl Iterator<Item = SequenceId> {
        self.live.keys().copied()
    }

    fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.live.keys().map(|&id| self.scheduler.sequence(id).expect("a live sequence is known"))
    }

    fn before(&self, id: SequenceId) -> Before {
        let sequence = self.scheduler.sequence(id).expect("a live sequence is known");
        let chunks: Vec<&Chunk> = self.chunks_in_flight().filter(|chunk| chunk.id == id).collect();
        let start = sequence.computed + chunks.iter().map(|chunk| chunk.len).sum::<usize>();
        let len = sequence.tokens.len() + chunks.iter().filter(|chunk| chunk.samples).count();
        let room = chunks.len() < self.scheduler.steps_in_flight_max() && !(len > sequence.prompt_len && len >= sequence.total_len_max);
        let runs = sequence.status == SequenceStatus::Running && room && !(sequence.draw_needs_history() && self.history_is_drawn());
        Before {
            status: sequence.status,
            decodes: runs && len == start + 1,
            prefills: runs && len > start + 1,
            in_flight: !chunks.is_empty(),
            start,
            len,
        }
    }

    fn chunks_in_flight(&self) -> impl Iterator<Item = &Chunk> {
        self.in_flight.iter().flatten().map(|outcome| &outcome.chunk)
    }

    /// True while a draw is under way that a later draw on the host depends on.
    fn history_is_drawn(&self) -> bool {
        self.chunks_in_flight().any(|chunk| chunk.samples && self.scheduler.sequence(chunk.id).is_some_and(Sequence::draw_needs_history))
    }

    fn run(&mut self, step: &Step) {
        let batch = Batch::new(step, &self.scheduler);
        for (share, chunk) in batch.sequences.iter().zip(&step.chunks) {
            let sequence = self.scheduler.sequence(chunk.id).expect("a planned sequence is known");
            for &block in &share.blocks[share.start / batch.block_size..share.context_len.div_ceil(batch.block_size)] {
                let holders = self.sequences().filter(|other| other.blocks.contains(&block)).count();
                assert_eq!(holders, 1, "{chunk:?} writes to block {block}");
            }
            if let Some(sample) = &share.sample {
                let history = if sequence.draw_needs_history() { sequence.answer() } else { &[] };
                assert_eq!((sample.position, &*sample.answer), (chunk.end() as u64, history), "{chunk:?}");
            }
        }
        let tokens = self.device.run(&batch, |id| self.scheduler.sequence(id).expect("a planned sequence is known").salt);
        for share in &batch.sequences {
            let sequence = self.scheduler.sequence(share.id).expect("a planned sequence is known");
            self.device.compare(&batch, share, sequence).unwrap();
        }
        let scored = batch.sequences.iter().map(|share| share.scores.iter().map(|score| score.position).collect());
        let outcomes = step.chunks.iter().zip(tokens).zip(scored).map(|((&chunk, token), scored)| Outcome { chunk, token, scored });
        self.in_flight.push_back(outcomes.collect());
    }

    fn check_books(&self) {
        self.scheduler.check().unwrap();
        let stats = self.scheduler.blocks().stats();
        assert_eq!(stats.used + stats.free, stats.total);
        assert_eq!(stats.tokens_saved, self.tokens_saved);
        assert_eq!(self.scheduler.running() + self.scheduler.waiting(), self.live.len());
        assert!(self.scheduler.running() <= self.limits.running_max);
    }

    fn check_step(&mut self, before: &BTreeMap<SequenceId, Before>, step: &Step) {
        assert!(step.tokens() <= self.limits.step_tokens_max, "{step:?} is over the budget");
        assert!(self.scores(step) <= self.limits.step_scores_max, "{step:?} scores too much");
        let chunks: BTreeMap<SequenceId, &Chunk> = step.chunks.iter().map(|chunk| (chunk.id, chunk)).collect();
        assert_eq!(chunks.len(), step.chunks.len(), "two chunks of one sequence in {step:?}");
        self.check_decodes(before, step, &chunks);
        self.check_admissions(before, step, &chunks);
        for chunk in &step.chunks {
            let sequence = self.scheduler.sequence(chunk.id).expect("a planned sequence is known");
            let Before { start, len, in_flight, .. } = before[&chunk.id];
            let start = if in_flight { start } else { sequence.computed };
            assert!(chunk.len > 0 && chunk.start == start, "{chunk:?}");
            assert_eq!((chunk.samples, chunk.pending), (chunk.end() == len, start == sequence.tokens.len()), "{chunk:?}");
            assert!(!sequence.draw_needs_history() || !self.history_is_drawn(), "{chunk:?} does not know what was drawn");
        }
    }

    /// Decodes come first; each running sequence decodes, or had to give way to one at or before its own place.
    fn check_decodes(&self, before: &BTreeMap<SequenceId, Before>, step: &Step, chunks: &BTreeMap<SequenceId, &Chunk>) {
        let kinds: Vec<bool> = step.chunks.iter().map(|chunk| !before[&chunk.id].decodes).collect();
        assert!(kinds.is_sorted(), "a decode behind a prefill in {step:?}");
        // Who finds no block waits, if the one who is to give way is being computed; that one waits, too.
        let last = self.sequences().filter(|other| other.status == SequenceStatus::Running).max_by_key(|other| self.live[&other.id]);
        let cramped = self.scheduler.blocks().free() == 0 && last.is_some_and(|last| before[&last.id].in_flight);
        for (id, before) in before {
            let served = chunks.contains_key(id) || step.preempted.contains(id);
            let short = cramped && (self.needs_block(*id, before) || last.is_some_and(|last| last.id == *id));
            let scored_out = self.scores(step) == self.limits.step_scores_max && self.is_scored(*id);
            assert!(!before.decodes || served || short || scored_out, "{id:?} could decode but does not in {step:?}");
            let starved = before.prefills && !served && step.tokens() < self.limits.step_tokens_max && !scored_out;
            assert!(!starved || short, "{id:?} could go on with its prompt in {step:?}");
        }
        for preempted in &step.preempted {
            assert!(!before[preempted].in_flight && !chunks.contains_key(preempted));
            let mut running = self.sequences().filter(|other| other.status == SequenceStatus::Running);
            assert!(running.all(|other| self.live[&other.id] < self.live[preempted]), "{preempted:?} was not the last");
        }
    }

    /// Tokens that a step scores.
    fn scores(&self, step: &Step) -> usize {
        let scores =
            |chunk: &Chunk| self.scheduler.sequence(chunk.id).map_or(0, |sequence| sequence.scores(chunk.start, chunk.end()).len());
        step.chunks.iter().map(scores).sum()
    }

    fn is_scored(&self, id: SequenceId) -> bool {
        self.scheduler.sequence(id).is_some_and(Sequence::is_scored)
    }

    fn needs_block(&self, id: SequenceId, before: &Before) -> bool {
        let table = self.scheduler.sequence(id).map_or(0, |sequence| sequence.blocks.len());
        before.start >= table * self.scheduler.blocks().block_size()
    }

    /// Nobody overtakes in a queue, and what the cache gave is whole blocks, short of the last token.
    fn check_admissions(&mut self, before: &BTreeMap<SequenceId, Before>, step: &Step, chunks: &BTreeMap<SequenceId, &Chunk>) {
        let waiting: Vec<_> = self.sequences().filter(|other| other.status != SequenceStatus::Running).map(|other| other.id).collect();
        for id in &step.admitted {
            assert!(waiting.iter().all(|other| self.live[other] > self.live[id]), "{id:?} overtakes in {step:?}");
            assert!(chunks.contains_key(id), "{id:?} was admitted for nothing");
            let sequence = self.scheduler.sequence(*id).expect("an admitted sequence is known");
            assert!(sequence.computed < sequence.tokens.len() && sequence.computed.is_multiple_of(self.scheduler.blocks().block_size()));
            if before[id].status == SequenceStatus::Waiting {
                assert_eq!(sequence.cached, sequence.computed);
                self.tokens_saved += sequence.cached as u64;
            }
        }
    }
}
