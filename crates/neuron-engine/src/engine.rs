//! The loop that makes tokens, one thread per loaded decoder: receive -> schedule -> execute -> commit -> emit.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use cortex_core::{FinishReason, HarnessError};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tracing::{error, info};

use crate::batch::Batch;
use crate::device::RankGroup;
use crate::device::command::{ModelKey, StepInput, StepOutput};
use crate::error::DeviceError;
use crate::generation::TokenEvent;
use crate::image::PreparedImage;
use crate::sampler::Sampled;
use crate::scheduler::{AddError, Scheduler, Step};
use crate::sequence::{Sequence, SequenceId};
use crate::stats::EngineStats;

/// One sequence on its way into the engine.
pub struct Submission {
    /// What to continue.
    pub sequence: Sequence,
    /// The pictures of its image spans, in order.
    pub images: Vec<Arc<PreparedImage>>,
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
    live: HashMap<SequenceId, Live>,
    ranks: RankGroup,
    key: ModelKey,
    end_tokens: Vec<u32>,
    stats: Arc<EngineStats>,
    draining: Option<Draining>,
}

struct Draining {
    until: Instant,
    done: oneshot::Sender<()>,
}

/// What the engine keeps of a sequence beside the scheduler's part.
struct Live {
    images: Vec<Arc<PreparedImage>>,
    events: mpsc::Sender<TokenEvent>,
    place: Option<OwnedSemaphorePermit>,
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
        Self { inbox, scheduler, live: HashMap::new(), ranks, key, end_tokens, stats, draining: None }
    }

    /// Runs until drained or until nobody can submit any more.
    pub fn run(mut self) {
        info!("engine started");
        while self.receive() {
            self.drop_cancelled();
            self.drop_late();
            let step = self.scheduler.schedule();
            self.stats.preempted(step.preempted.len());
            self.give_up_places(&step);
            if !step.chunks.is_empty() {
                match self.execute(&step) {
                    Ok(output) => self.commit(&step, output),
                    Err(error) => self.fail(&step, &error),
                }
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
        while !self.live.is_empty() {
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
        let Submission { sequence, images, events, place } = submission;
        let id = sequence.id;
        match self.scheduler.add(sequence) {
            Ok(()) => {
                let live = Live { images, events, place: Some(place), started: false };
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
            self.give_up(&HarnessError::ShuttingDown);
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

    fn execute(&self, step: &Step) -> Result<StepOutput, DeviceError> {
        let batch = Batch::new(step, &self.scheduler);
        let seen: HashSet<u64> = batch.image_parts().iter().map(|(_, part)| part.image.hash).collect();
        let images = step.chunks.iter().filter_map(|chunk| self.live.get(&chunk.id)).flat_map(|live| &live.images);
        let images = images.filter(|image| seen.contains(&image.hash)).cloned().collect();
        self.ranks.execute(self.key, &Arc::new(StepInput { batch, images }))
    }

    fn commit(&mut self, step: &Step, output: StepOutput) {
        let mut sampled: HashMap<SequenceId, Sampled> = output.sampled.into_iter().collect();
        for chunk in &step.chunks {
            let token = sampled.remove(&chunk.id);
            self.scheduler.commit(chunk.id, chunk.len, token.as_ref().map(|sampled| sampled.token));
            self.stats.computed(chunk.len, token.is_some());
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
            emit(&live.events, TokenEvent::Started { cached_tokens: sequence.cached as u32 });
        }
        let ended = self.end_tokens.contains(&sampled.token) && !sequence.sampling.ignore_eos;
        let full = sequence.is_full();
        if !ended {
            emit(&live.events, TokenEvent::Token(sampled));
        }
        if ended || full {
            let reason = if ended { FinishReason::Stop } else { FinishReason::Length };
            emit(&live.events, TokenEvent::Finish { reason, ended_by_token: ended });
            self.end(id);
        }
    }

    /// The sequences of a failed step get the reason; the others go on.
    fn fail(&mut self, step: &Step, error: &DeviceError) {
        error!(%error, sequences = step.chunks.len(), "a step failed");
        // The ranks of a split model cannot be brought back into step.
        self.stats.failed(error.is_lasting() || self.ranks.devices().len() > 1);
        for chunk in &step.chunks {
            self.end_with(chunk.id, HarnessError::Internal(error.to_string()));
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
