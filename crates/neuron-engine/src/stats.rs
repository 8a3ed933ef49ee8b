//! Counters of one loaded model, written by its engine and read by anyone.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use cortex_core::{ModelHealth, ModelId};
use tokio::sync::watch;

use crate::error::DeviceError;
use crate::scheduler::Scheduler;

/// See [`ModelHealth`] for the meaning of each.
#[derive(Debug, Default)]
pub struct EngineStats {
    running: AtomicU32,
    waiting: AtomicU32,
    kv_blocks_used: AtomicU32,
    kv_blocks_total: AtomicU32,
    generated_tokens: AtomicU64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    cancelled: AtomicU64,
    preempted: AtomicU64,
    failure: watch::Sender<Option<DeviceError>>,
    rate: Mutex<Rate>,
}

/// Tokens per second, computed and generated, smoothed over some seconds.
#[derive(Debug)]
struct Rate {
    since: Instant,
    tokens: u64,
    per_s: f64,
}

impl Default for Rate {
    fn default() -> Self {
        Self { since: Instant::now(), tokens: 0, per_s: 0.0 }
    }
}

impl Rate {
    const WINDOW_S: f64 = 2.0;

    fn add(&mut self, tokens: u64) {
        self.tokens += tokens;
        let elapsed = self.since.elapsed().as_secs_f64();
        if elapsed >= Self::WINDOW_S {
            *self = Self { since: Instant::now(), tokens: 0, per_s: self.tokens as f64 / elapsed };
        }
    }
}

impl EngineStats {
    /// Takes the scheduler's figures after a step.
    pub fn observe(&self, scheduler: &Scheduler) {
        self.running.store(scheduler.running() as u32, Relaxed);
        self.waiting.store(scheduler.waiting() as u32, Relaxed);
        self.kv_blocks_used.store(scheduler.blocks().used() as u32, Relaxed);
        self.kv_blocks_total.store(scheduler.blocks().total() as u32, Relaxed);
    }

    /// A prompt is in the cache.
    pub fn started(&self, prompt_tokens: usize, cached_tokens: usize) {
        self.prompt_tokens.fetch_add(prompt_tokens as u64, Relaxed);
        self.cached_tokens.fetch_add(cached_tokens as u64, Relaxed);
    }

    /// A chunk went through the model.
    pub fn computed(&self, tokens: usize, sampled: bool) {
        self.generated_tokens.fetch_add(u64::from(sampled), Relaxed);
        self.rate.lock().expect("no holder panics").add(tokens as u64);
    }

    /// A client left.
    pub fn cancelled(&self) {
        self.cancelled.fetch_add(1, Relaxed);
    }

    /// Sequences lost their blocks to others.
    pub fn preempted(&self, sequences: usize) {
        self.preempted.fetch_add(sequences as u64, Relaxed);
    }

    /// How often that happened.
    pub fn preemptions(&self) -> u64 {
        self.preempted.load(Relaxed)
    }

    /// A step failed in a way that leaves the model unusable until it is loaded again.
    pub fn failed(&self, error: &DeviceError) {
        // The first says why; what follows is its consequence.
        self.failure.send_if_modified(|failure| failure.is_none() && failure.replace(error.clone()).is_none());
    }

    /// The failure that only a new load mends.
    pub fn failure(&self) -> Option<DeviceError> {
        self.failure.borrow().clone()
    }

    /// Tells when it comes.
    pub fn failures(&self) -> watch::Receiver<Option<DeviceError>> {
        self.failure.subscribe()
    }

    /// False after such a failure.
    pub fn servable(&self) -> bool {
        self.failure.borrow().is_none()
    }

    /// Seconds until `tokens` waiting tokens are through, by the recent rate; between 1 and 60.
    pub fn wait_s(&self, tokens: u64) -> u64 {
        let per_s = self.rate.lock().expect("no holder panics").per_s.max(1.0);
        ((tokens as f64 / per_s).ceil() as u64).clamp(1, 60)
    }

    /// How many clients left before their answer was whole.
    pub fn cancelled_total(&self) -> u64 {
        self.cancelled.load(Relaxed)
    }

    /// The figures of this moment.
    pub fn report(&self, id: &ModelId) -> ModelHealth {
        ModelHealth {
            id: id.clone(),
            servable: self.servable(),
            running: self.running.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            kv_blocks_used: self.kv_blocks_used.load(Relaxed),
            kv_blocks_total: self.kv_blocks_total.load(Relaxed),
            generated_tokens_total: self.generated_tokens.load(Relaxed),
            prompt_tokens_total: self.prompt_tokens.load(Relaxed),
            cached_tokens_total: self.cached_tokens.load(Relaxed),
        }
    }
}
