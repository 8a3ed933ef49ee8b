//! Two steps under way at a time, on real device threads: what the second starts from, and what it loses when the first fails.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cortex_core::SamplingRequest;
use futures::executor::block_on;
use neuron_engine::DeviceSet;
use neuron_engine::batch::Batch;
use neuron_engine::cache::block_manager::BlockManager;
use neuron_engine::cache::kv_cache::BLOCK_SIZE;
use neuron_engine::device::command::{ModelKey, ShardLoad, StepInput, StepOutput};
use neuron_engine::device::{PendingStep, RankGroup};
use neuron_engine::models::registry::load_config;
use neuron_engine::scheduler::{Limits, Scheduler, Step};
use neuron_engine::sequence::{Sequence, SequenceId};
use neuron_engine::weights::Precision;

const KEY: ModelKey = ModelKey(1);
const BLOCKS: usize = 32;

/// An engine's scheduler and devices without its loop, so that a test can hold steps back.
struct Pipeline {
    scheduler: Scheduler,
    ranks: RankGroup,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/parity/checkpoints/qwen3-dense-tied")
}

impl Pipeline {
    fn new(world_size: usize, lookahead: bool) -> Self {
        let limits = Limits { step_tokens_max: 64, step_scores_max: 64, running_max: 8, waiting_max: 8, lookahead };
        let scheduler = Scheduler::new(limits, BlockManager::new(BLOCKS, BLOCK_SIZE, true));
        let devices = DeviceSet::cpu(world_size).unwrap();
        let ranks = devices.ranks(world_size, None).unwrap();
        let group = devices.group(&ranks, Duration::from_secs(60)).unwrap();
        let config = Arc::new(load_config(&folder()).unwrap());
        let shard = |rank: &neuron_engine::device::Rank| ShardLoad {
            folder: folder(),
            config: config.clone(),
            precision: Precision::CPU,
            shard: rank.shard,
            comm: rank.comm.clone(),
            vision: Default::default(),
        };
        let loads: Vec<_> = ranks.iter().map(|rank| rank.device.load(KEY, shard(rank))).collect();
        for loaded in block_on(futures::future::try_join_all(loads)).unwrap() {
            loaded.unwrap();
        }
        let reserves = group.devices().iter().map(|device| device.reserve(KEY, BLOCKS));
        block_on(futures::future::try_join_all(reserves)).unwrap();
        Self { scheduler, ranks: group }
    }

    fn add(&mut self, id: u64, prompt: &[u32], request: &SamplingRequest) {
        let mut sequence = Sequence::new(SequenceId(id), prompt.to_vec(), prompt.len() + 8);
        sequence.sampling = Arc::new(request.resolve(&Default::default(), 0));
        self.scheduler.add(sequence).unwrap();
    }

    fn submit(&mut self) -> (Step, PendingStep) {
        let step = self.scheduler.schedule();
        let batch = Batch::new(&step, &self.scheduler);
        let outcome = self.ranks.submit(KEY, &Arc::new(StepInput { batch, images: vec![] }));
        (step, outcome)
    }

    fn commit(&mut self, step: &Step, output: &StepOutput) {
        for chunk in &step.chunks {
            let drawn = output.sampled.iter().find(|(id, _)| *id == chunk.id);
            self.scheduler.commit(chunk.id, chunk.len, drawn.map(|(_, sampled)| sampled.token));
        }
    }

    fn answer(&self, id: u64) -> Vec<u32> {
        self.scheduler.sequence(SequenceId(id)).unwrap().answer().to_vec()
    }
}

fn greedy() -> SamplingRequest {
    SamplingRequest { temperature: Some(0.0), ..Default::default() }
}

/// A request whose draw fails, because its bias leaves no token.
fn impossible() -> SamplingRequest {
    SamplingRequest { logit_bias: (0..1024).map(|id| (id, f32::NEG_INFINITY)).collect(), ..greedy() }
}

/// The first `count` tokens that follow `prompt`, one step at a time.
fn one_by_one(prompt: &[u32], count: usize) -> Vec<u32> {
    let mut plain = Pipeline::new(1, false);
    plain.add(7, prompt, &greedy());
    for _ in 0..count {
        let (step, outcome) = plain.submit();
        plain.commit(&step, &outcome.wait().unwrap());
    }
    plain.answer(7)
}

#[test]
fn a_step_starts_from_tokens_that_the_host_has_not_seen() {
    let prompts: [&[u32]; 2] = [&[5, 6, 7, 8], &[400, 300, 200]];
    for world_size in [1, 2] {
        let mut ahead = Pipeline::new(world_size, true);
        ahead.add(0, prompts[0], &greedy());
        ahead.add(1, prompts[1], &greedy());
        let mut in_flight = ahead.submit();
        for _ in 0..5 {
            let next = ahead.submit();
            assert!(next.0.chunks.iter().all(|chunk| chunk.pending), "{:?}", next.0);
            let (step, outcome) = std::mem::replace(&mut in_flight, next);
            ahead.commit(&step, &outcome.wait().unwrap());
        }
        for (id, prompt) in prompts.iter().enumerate() {
            assert_eq!(ahead.answer(id as u64), one_by_one(prompt, 5), "{world_size} ranks");
        }
    }
}

#[test]
fn a_failed_step_takes_its_sequences_out_of_the_step_behind_it_and_no_others() {
    let mut ahead = Pipeline::new(1, true);
    ahead.add(0, &[1, 2, 3], &impossible());
    ahead.add(1, &[9, 8, 7], &greedy());
    let (_, first) = ahead.submit();
    ahead.add(2, &[5, 6, 7, 8], &greedy());
    let (step, second) = ahead.submit();
    assert_eq!(step.chunks.iter().map(|chunk| (chunk.id.0, chunk.pending)).collect::<Vec<_>>(), [(0, true), (1, true), (2, false)]);
    assert!(first.wait().unwrap_err().to_string().contains("no token can follow"));
    let output = second.wait().unwrap();
    assert_eq!(output.sampled.iter().map(|(id, _)| id.0).collect::<Vec<_>>(), [2]);
    ahead.scheduler.finish(SequenceId(0));
    ahead.scheduler.finish(SequenceId(1));
    ahead.commit(&step, &output);
    ahead.scheduler.check().unwrap();
    assert_eq!(ahead.answer(2), one_by_one(&[5, 6, 7, 8], 1));
}

#[test]
fn a_step_that_lost_all_its_sequences_computes_nothing() {
    let mut ahead = Pipeline::new(1, true);
    ahead.add(0, &[1, 2, 3], &impossible());
    let ((_, first), (_, second)) = (ahead.submit(), ahead.submit());
    assert!(first.wait().is_err());
    assert_eq!(second.wait().unwrap().sampled, []);
}

#[test]
fn an_answer_may_come_from_another_thread_and_the_first_one_counts() {
    use neuron_engine::device::command::StepReply;
    use neuron_engine::error::DeviceError;
    let (reply, answer) = StepReply::new();
    let spare = reply.clone();
    let elsewhere = std::thread::spawn(move || reply.answer(Err(DeviceError::NotLoaded)));
    elsewhere.join().unwrap();
    spare.answer(Ok(StepOutput::default()));
    assert_eq!(answer.blocking_recv().unwrap().unwrap_err(), DeviceError::NotLoaded);
    let (forgotten, answer) = StepReply::new();
    drop(forgotten);
    assert!(answer.blocking_recv().is_err());
}
