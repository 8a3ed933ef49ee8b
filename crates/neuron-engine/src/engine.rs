//! The loop that makes tokens, one thread per loaded decoder: receive -> schedule -> execute -> commit -> emit.
//!
//! It is a pipeline two steps deep: step n + 1 is planned and handed over before step n is waited for, so that the device always
//! has its next step at hand, and planning, committing and emitting cost nothing as long as they take less time than a step.
//!
//! ```text
//! loop     plan 1, plan 2   commit 1, plan 3   commit 2, plan 4
//! device         [ step 1 ][      step 2     ][      step 3     ]
//! ```
//!
//! What ends while its next chunk is under way is finished at once and frees its blocks; the late result is dropped.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use cortex_core::{FinishReason, HarnessError};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tracing::{error, info};

use crate::batch::Batch;
use crate::device::command::{ModelKey, StepInput, StepOutput};
use crate::device::{PendingStep, RankGroup};
use crate::error::DeviceError;
use crate::generation::TokenEvent;
use crate::grammar::Constraint;
use crate::image::PreparedImage;
use crate::sampler::Sampled;
use crate::scheduler::{AddError, Scheduler, Step};
use crate::sequence::{Sequence, SequenceId, SequenceMap};
use crate::stats::EngineStats;

/// One sequence on its way into the engine.
pub struct Submission {
    /// What to continue.
    pub sequence: Sequence,
    /// The pictures of its image spans, in order.
    pub images: Vec<Arc<PreparedImage>>,
    /// What holds the answer to a form, if anything does.
    pub constraint: Option<Box<Constraint>>,
    /// Where the tokens go. Closed by the receiver: cancelled.
    pub events: mpsc::Sender<TokenEvent>,
    /// Its place among the waiting; given up when it is first scheduled.
    pub place: OwnedSemaphorePermit,
}

/// What an engine can be told.
pub enum EngineCommand {
    /// A new sequence.
    Submit(Box<Submission>),
    /// Take nothing more, finish what is here or give it up at `until`, answer, end.
    Drain {
        /// When patience ends.
        until: Instant,
        /// Answered when nothing runs any more.
        done: oneshot::Sender<()>,
    },
}

/// The loop's state. Everything here belongs to its thread.
pub struct Engine {
    inbox: mpsc::Receiver<EngineCommand>,
    scheduler: Scheduler,
    live: SequenceMap<Live>,
    /// Steps handed over but not committed, oldest first.
    in_flight: VecDeque<InFlight>,
    ranks: RankGroup,
    key: ModelKey,
    end_tokens: Vec<u32>,
    stats: Arc<EngineStats>,
    draining: Option<Draining>,
}

/// A step that was handed over.
struct InFlight {
    step: Step,
    outcome: PendingStep,
}

struct Draining {
    until: Instant,
    done: oneshot::Sender<()>,
}

/// What the engine keeps of a sequence beside the scheduler's part.
struct Live {
    images: Vec<Arc<PreparedImage>>,
    constraint: Option<Box<Constraint>>,
    events: mpsc::Sender<TokenEvent>,
    place: Option<OwnedSemaphorePermit>,
    /// The scores of the prompt so far.
    scores: Vec<Sampled>,
    started: bool,
}

impl Engine {
    /// An engine with nothing to do.
    pub fn new(
        inbox: mpsc::Receiver<EngineCommand>,
        scheduler: Scheduler,
        ranks: RankGroup,
        key: ModelKey,
        end_tokens: Vec<u32>,
        stats: Arc<EngineStats>,
    ) -> Self {
        Self { inbox, scheduler, live: SequenceMap::default(), in_flight: VecDeque::new(), ranks, key, end_tokens, stats, draining: None }
    }

    /// Runs until drained or until nobody can submit any more.
    pub fn run(mut self) {
        info!("engine started");
        while self.receive() {
            self.drop_cancelled();
            self.drop_late();
            let planned = self.plan();
            if !planned || self.in_flight.len() == self.scheduler.steps_in_flight_max() {
                self.settle();
            }
            self.stats.observe(&self.scheduler);
        }
        if let Some(draining) = self.draining.take() {
            // The one who asked may have gone.
            let _ = draining.done.send(());
        }
        info!("engine ended");
    }

    /// Takes what has arrived; waits only when there is nothing to compute. False: end.
    fn receive(&mut self) -> bool {
        while !self.live.is_empty() || !self.in_flight.is_empty() {
            match self.inbox.try_recv() {
                Ok(command) => self.accept(command),
                Err(_) => return true,
            }
        }
        if self.draining.is_some() {
            return false;
        }
        match self.inbox.blocking_recv() {
            Some(command) => {
                self.accept(command);
                true
            }
            None => false,
        }
    }

    fn accept(&mut self, command: EngineCommand) {
        match command {
            EngineCommand::Submit(submission) => self.submit(*submission),
            EngineCommand::Drain { until, done } => {
                self.inbox.close();
                self.draining = Some(Draining { until, done });
            }
        }
    }

    fn submit(&mut self, submission: Submission) {
        let Submission { sequence, images, constraint, events, place } = submission;
        let id = sequence.id;
        match self.scheduler.add(sequence) {
            Ok(()) => {
                let live = Live { images, constraint, events, place: Some(place), scores: vec![], started: false };
                self.live.insert(id, live);
            }
            Err(error) => emit(&events, TokenEvent::Failed(error.into())),
        }
    }

    /// A client that has gone frees its blocks before the next step.
    fn drop_cancelled(&mut self) {
        let gone: Vec<_> = self.live.iter().filter(|(_, live)| live.events.is_closed()).map(|(id, _)| *id).collect();
        for id in gone {
            self.stats.cancelled();
            self.end(id);
        }
    }

    /// What outlives the patience of a drain is told so.
    fn drop_late(&mut self) {
        if self.draining.as_ref().is_some_and(|draining| Instant::now() >= draining.until) {
            self.give_up(&self.ranks.loss().map_or(HarnessError::ShuttingDown, HarnessError::from));
        }
    }

    fn give_up(&mut self, error: &HarnessError) {
        for id in self.live.keys().copied().collect::<Vec<_>>() {
            self.end_with(id, error.clone());
        }
    }

    fn give_up_places(&mut self, step: &Step) {
        for id in &step.admitted {
            if let Some(live) = self.live.get_mut(id) {
                live.place = None;
            }
        }
    }

    /// Plans a step and hands it over. False: there is nothing to plan before something is committed, or has arrived.
    fn plan(&mut self) -> bool {
        let step = self.scheduler.schedule();
        self.stats.preempted(step.preempted.len());
        self.give_up_places(&step);
        if step.is_empty() {
            return false;
        }
        let outcome = self.submit_step(&step);
        self.in_flight.push_back(InFlight { step, outcome });
        true
    }

    fn submit_step(&self, step: &Step) -> PendingStep {
        let mut batch = Batch::new(step, &self.scheduler);
        self.hold_to_forms(&mut batch);
        let seen: HashSet<u64> = batch.image_parts().iter().map(|(_, part)| part.image.hash).collect();
        let images = step.chunks.iter().filter_map(|chunk| self.live.get(&chunk.id)).flat_map(|live| &live.images);
        let images = images.filter(|image| seen.contains(&image.hash)).cloned().collect();
        self.ranks.submit(self.key, &Arc::new(StepInput { batch, images }))
    }

    /// Waits for the oldest step under way and books it.
    fn settle(&mut self) {
        let Some(InFlight { step, outcome }) = self.in_flight.pop_front() else { return };
        match outcome.wait() {
            Ok(output) => self.commit(&step, output),
            // The ranks beside one whose device failed only know that they waited in vain.
            Err(error) => self.fail(&step, &self.ranks.loss().unwrap_or(error)),
        }
    }

    fn hold_to_forms(&self, batch: &mut Batch) {
        for sequence in &mut batch.sequences {
            let constraint = self.live.get(&sequence.id).and_then(|live| live.constraint.as_ref());
            if let (Some(sample), Some(constraint)) = (&mut sequence.sample, constraint) {
                sample.allowed = constraint.allowed().cloned();
            }
        }
    }

    fn commit(&mut self, step: &Step, output: StepOutput) {
        // All are in the order of the batch.
        let mut sampled = output.sampled.into_iter().peekable();
        let mut scored = output.scored.into_iter().peekable();
        for chunk in &step.chunks {
            while let Some((id, score)) = scored.next_if(|(id, _)| *id == chunk.id) {
                self.live.entry(id).and_modify(|live| live.scores.push(score));
            }
            let drawn = sampled.next_if(|(id, _)| *id == chunk.id).map(|(_, sampled)| sampled);
            // For what ended while the step was under way, nobody waits.
            let token = drawn.filter(|_| self.live.contains_key(&chunk.id));
            self.scheduler.commit(chunk.id, chunk.len, token.as_ref().map(|sampled| sampled.token));
            let answers = self.scheduler.sequence(chunk.id).is_some_and(Sequence::answers);
            self.stats.computed(chunk.len, answers && token.is_some());
            if let Some(token) = token {
                self.emit_token(chunk.id, token);
            }
        }
    }

    fn emit_token(&mut self, id: SequenceId, sampled: Sampled) {
        let (Some(live), Some(sequence)) = (self.live.get_mut(&id), self.scheduler.sequence(id)) else { return };
        if !live.started {
            live.started = true;
            self.stats.started(sequence.prompt_len, sequence.cached);
            let scores = std::mem::take(&mut live.scores);
            emit(&live.events, TokenEvent::Started { cached_tokens: sequence.cached as u32, scores });
        }
        // Where no answer is wanted, the token drawn is not looked at: its draw only tells that the prompt is done.
        let is_end = sequence.answers() && self.end_tokens.contains(&sampled.token);
        // A form says itself where it ends.
        let ended = is_end && (!sequence.sampling.ignore_eos || live.constraint.is_some());
        let full = sequence.is_full();
        let mut complete = false;
        if let (Some(constraint), false) = (&mut live.constraint, ended) {
            if let Err(error) = constraint.accept(sampled.token) {
                error!(%error, "an answer left its form");
                return self.end_with(id, HarnessError::Internal(error.to_string()));
            }
            complete = constraint.is_complete();
        }
        if !ended && sequence.answers() {
            emit(&live.events, TokenEvent::Token(sampled));
        }
        if ended || full || complete {
            let reason = if ended || complete { FinishReason::Stop } else { FinishReason::Length };
            let events = live.events.clone();
            self.end(id);
            // Whoever hears of the end finds figures that know of it.
            self.stats.observe(&self.scheduler);
            emit(&events, TokenEvent::Finish { reason, ended_by_token: ended });
        }
    }

    /// The sequences of a failed step get the reason; the others go on. A step behind it that starts from tokens of this one computes
    /// nothing for the sequences that end here.
    fn fail(&mut self, step: &Step, error: &DeviceError) {
        error!(%error, sequences = step.chunks.len(), "a step failed");
        // The ranks of a split model cannot be brought back into step.
        if error.is_lasting() || self.ranks.devices().len() > 1 {
            self.stats.failed(error);
        }
        if let DeviceError::Failed(_) = error {
            // With the device's memory all sequences are lost, also those that were not in this step.
            self.give_up(&error.clone().into());
            return;
        }
        for chunk in &step.chunks {
            self.end_with(chunk.id, error.clone().into());
        }
    }

    fn end_with(&mut self, id: SequenceId, error: HarnessError) {
        if let Some(live) = self.live.get(&id) {
            emit(&live.events, TokenEvent::Failed(error));
        }
        self.end(id);
    }

    fn end(&mut self, id: SequenceId) {
        self.scheduler.finish(id);
        self.live.remove(&id);
    }
}

impl From<AddError> for HarnessError {
    fn from(error: AddError) -> Self {
        match error {
            AddError::Full { .. } => Self::Overloaded { message: error.to_string(), retry_after_s: 1 },
            _ => Self::InvalidRequest { message: error.to_string(), param: None },
        }
    }
}

/// The channel holds a whole answer, so it is never full; it may be closed, which the next step notices.
fn emit(events: &mpsc::Sender<TokenEvent>, event: TokenEvent) {
    let _ = events.try_send(event);
}
