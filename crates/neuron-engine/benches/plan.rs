//! What the host does for one decode step, apart from talking to clients: plan, lay out the batch, and commit what was drawn.
//!
//! `cargo bench -p neuron-engine --bench plan [-- SEQUENCES CONTEXT]`

use std::time::{Duration, Instant};

use anyhow::Context;
use neuron_engine::batch::Batch;
use neuron_engine::cache::block_manager::BlockManager;
use neuron_engine::cache::kv_cache::BLOCK_SIZE;
use neuron_engine::scheduler::{Limits, Scheduler, Step};
use neuron_engine::sequence::{Sequence, SequenceId};

const STEPS: usize = 2000;

fn main() -> anyhow::Result<()> {
    let mut numbers = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).map(|arg| arg.parse::<usize>());
    let sequences = numbers.next().transpose().context("SEQUENCES is a number")?.unwrap_or(256);
    let context = numbers.next().transpose().context("CONTEXT is a number")?.unwrap_or(4096);
    println!("{sequences} sequences of {context} tokens, {STEPS} steps; us per step");
    println!("{:<12} {:>8} {:>8} {:>8}", "", "median", "p99", "longest");
    let mut run = Run::new(sequences, context);
    for _ in 0..STEPS {
        run.step();
    }
    let names = ["schedule", "lay out", "commit", "all"];
    for (name, times) in names.into_iter().zip(run.times()) {
        let [median, p99, longest] = [times.len() / 2, times.len() * 99 / 100, times.len() - 1].map(|at| times[at].as_secs_f64() * 1e6);
        println!("{name:<12} {median:>8.1} {p99:>8.1} {longest:>8.1}");
    }
    Ok(())
}

/// A full house, two steps deep.
struct Run {
    scheduler: Scheduler,
    /// The step under way, and its batch, as a device would hold it.
    in_flight: (Step, Batch),
    times: [Vec<Duration>; 3],
}

impl Run {
    fn new(sequences: usize, context: usize) -> Self {
        let len_max = context + STEPS + 3;
        let limits = Limits {
            step_tokens_max: sequences * context,
            step_scores_max: 1,
            running_max: sequences,
            waiting_max: sequences,
            lookahead: true,
        };
        let blocks = sequences * len_max.div_ceil(BLOCK_SIZE);
        let mut scheduler = Scheduler::new(limits, BlockManager::new(blocks, BLOCK_SIZE, true));
        for id in 0..sequences as u64 {
            // Prompts of several lengths, so that blocks do not fill up all in one step.
            let prompt = (0..context as u32 - (id as u32 * 7) % 32).map(|index| index.wrapping_mul(id as u32 + 3) % 50_000).collect();
            scheduler.add(Sequence::new(SequenceId(id), prompt, len_max)).expect("there is room");
        }
        let step = scheduler.schedule();
        let batch = Batch::new(&step, &scheduler);
        let mut run = Self { scheduler, in_flight: (step, batch), times: Default::default() };
        // The prompts go in, which is not what is asked for.
        run.step();
        run.times = Default::default();
        run
    }

    fn step(&mut self) {
        let started = Instant::now();
        let step = self.scheduler.schedule();
        let scheduled = Instant::now();
        let batch = Batch::new(&step, &self.scheduler);
        let paged = std::hint::black_box((batch.positions(), batch.logit_rows(), batch.paged()));
        let laid_out = Instant::now();
        let (done, _) = std::mem::replace(&mut self.in_flight, (step, batch));
        for chunk in &done.chunks {
            self.scheduler.commit(chunk.id, chunk.len, chunk.samples.then_some(chunk.start as u32 % 50_000));
        }
        let committed = Instant::now();
        drop(paged);
        let parts = [scheduled - started, laid_out - scheduled, committed - laid_out];
        self.times.iter_mut().zip(parts).for_each(|(times, part)| times.push(part));
    }

    /// Of each part, and of all three together; sorted.
    fn times(self) -> [Vec<Duration>; 4] {
        let [schedule, lay_out, commit] = self.times;
        let all = schedule.iter().zip(&lay_out).zip(&commit).map(|((a, b), c)| *a + *b + *c).collect();
        [schedule, lay_out, commit, all].map(|mut times: Vec<Duration>| {
            times.sort_unstable();
            times
        })
    }
}
