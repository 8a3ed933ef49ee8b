//! From a planned step to the data that a device executes.

use std::sync::Arc;

use cortex_core::{SamplingParams, SamplingRequest};
use neuron_engine::batch::{Batch, ImagePart, NewTokens};
use neuron_engine::cache::block_manager::BlockManager;
use neuron_engine::scheduler::{Limits, Scheduler};
use neuron_engine::sequence::{ImageSpan, Sequence, SequenceId, SequenceMap};
use neuron_kernels::PagedBatch;

fn scheduler(step_tokens_max: usize) -> Scheduler {
    with_lookahead(step_tokens_max, false)
}

fn with_lookahead(step_tokens_max: usize, lookahead: bool) -> Scheduler {
    let limits = Limits { step_tokens_max, step_scores_max: 5, running_max: 8, waiting_max: 8, lookahead };
    Scheduler::new(limits, BlockManager::new(16, 4, true))
}

fn next(scheduler: &mut Scheduler) -> Batch {
    let step = scheduler.schedule();
    Batch::new(&step, scheduler)
}

/// Books all of `batch`; every sequence that samples draws `token`.
fn commit(scheduler: &mut Scheduler, batch: &Batch, token: u32) {
    for share in &batch.sequences {
        scheduler.commit(share.id, share.tokens.len(), share.sample.as_ref().map(|_| token));
    }
}

fn text(id: u64, tokens: std::ops::Range<u32>) -> Sequence {
    Sequence::new(SequenceId(id), tokens.collect(), 40)
}

#[test]
fn a_step_is_laid_end_to_end() {
    let mut scheduler = scheduler(9);
    scheduler.add(text(1, 10..13)).unwrap();
    scheduler.add(text(2, 20..30)).unwrap();
    let first = next(&mut scheduler);
    assert_eq!(first.tokens(), 9);
    assert_eq!(first.logit_rows(), [2], "the second prompt goes on");
    commit(&mut scheduler, &first, 99);

    let second = next(&mut scheduler);
    assert_eq!(second.ids(&SequenceMap::default()).unwrap(), [99, 26, 27, 28, 29]);
    assert_eq!(second.positions(), [3, 6, 7, 8, 9].repeat(3));
    assert_eq!(second.logit_rows(), [0, 4]);
    let PagedBatch { query_lens, context_lens, block_tables, slots, block_size, .. } = second.paged();
    assert_eq!((query_lens, context_lens, block_size), (vec![1, 4], vec![4, 10], 4));
    assert_eq!(block_tables, [vec![0].into(), vec![1, 2, 3].into()]);
    assert_eq!(slots, [3, 10, 11, 12, 13]);
}

#[test]
fn a_prompt_is_scored_token_by_token_whatever_the_cache_holds() {
    let mut scheduler = scheduler(9);
    scheduler.add(text(1, 10..19)).unwrap();
    let plain = next(&mut scheduler);
    commit(&mut scheduler, &plain, 99);
    scheduler.finish(SequenceId(1));
    for id in [2, 3] {
        let mut scored = text(id, 10..19);
        scored.score_from = 1;
        scheduler.add(scored).unwrap();
    }
    let mut tokens: Vec<Vec<u64>> = vec![vec![]; 4];
    let mut rows = Vec::new();
    loop {
        let step = next(&mut scheduler);
        for (asked, sample) in step.asked() {
            let only: Vec<u64> = (0..100).filter(|&id| sample.allowed.as_ref().is_some_and(|only| only.allows(id as u32))).collect();
            assert_eq!(only, if asked.scores { vec![10 + sample.position] } else { vec![] });
            tokens[asked.id.0 as usize].push(sample.position);
        }
        rows.push(step.logit_rows());
        commit(&mut scheduler, &step, 99);
        if tokens[3].len() == 9 {
            break;
        }
    }
    assert_eq!(tokens[2][..9], [1, 2, 3, 4, 5, 6, 7, 8, 9], "all but the first, and what comes next");
    assert_eq!(tokens[3], tokens[2][..9]);
    assert_eq!(rows[..2], [vec![0, 1, 2, 3, 4], vec![0, 1, 2, 3, 4, 5]], "five scores in a step; the second also draws");
}

#[test]
fn a_token_that_is_still_being_drawn_is_the_devices_to_know() {
    let mut scheduler = with_lookahead(9, true);
    scheduler.add(text(1, 10..13)).unwrap();
    scheduler.add(text(2, 20..30)).unwrap();
    next(&mut scheduler);
    let ahead = next(&mut scheduler);
    assert_eq!((&ahead.sequences[0].tokens, ahead.tokens()), (&NewTokens::Pending, 5));
    assert_eq!(ahead.sequences[0].sample.as_ref().unwrap().position, 4, "it draws the fifth token");
    assert_eq!(ahead.positions(), [3, 6, 7, 8, 9].repeat(3));
    assert_eq!(ahead.pending().collect::<Vec<_>>(), [SequenceId(1)]);
    let drawn = |id, token| SequenceMap::from_iter([(SequenceId(id), token)]);
    assert_eq!(ahead.ids(&drawn(1, 99)), Some(vec![99, 26, 27, 28, 29]));
    assert_eq!(ahead.ids(&drawn(2, 99)), None, "the step before drew nothing for it");
}

#[test]
fn a_table_is_shared_and_stays_as_it_was_while_its_sequence_grows() {
    let mut scheduler = with_lookahead(9, true);
    scheduler.add(text(1, 0..8)).unwrap();
    let tables = |scheduler: &Scheduler| scheduler.sequence(SequenceId(1)).unwrap().blocks.clone();
    let first = next(&mut scheduler);
    assert!(Arc::ptr_eq(&first.sequences[0].blocks, &tables(&scheduler)));
    let second = next(&mut scheduler);
    assert_eq!((&*first.sequences[0].blocks, &*second.sequences[0].blocks), (&vec![0, 1], &vec![0, 1, 2]));
}

#[test]
fn the_sampler_sees_the_past_only_if_penalties_ask_for_it() {
    let penalised = SamplingRequest { temperature: Some(0.5), frequency_penalty: Some(0.1), ..Default::default() };
    for (params, prompt, answer) in
        [(SamplingParams::greedy(), vec![], vec![]), (penalised.resolve(&Default::default(), 7), vec![1, 2, 3], vec![50])]
    {
        let mut scheduler = scheduler(8);
        let mut sequence = text(1, 1..4);
        (sequence.sampling, sequence.logprobs) = (Arc::new(params.clone()), Some(2));
        scheduler.add(sequence).unwrap();
        let batch = next(&mut scheduler);
        commit(&mut scheduler, &batch, 50);
        let sample = next(&mut scheduler).sequences[0].sample.clone().unwrap();
        assert_eq!((sample.position, sample.logprobs), (4, Some(2)), "the fifth token is drawn");
        assert_eq!((&*sample.params, sample.prompt, sample.answer), (&params, prompt, answer));
    }
}

#[test]
fn pictures_and_their_positions_follow_the_chunks() {
    let image = ImageSpan { start: 2, len: 4, hash: 7 };
    let mut sequence = text(1, 100..109);
    // Two tokens of text, a picture of two by two, three tokens of text.
    let grid = [[2, 2, 2], [2, 2, 3], [2, 3, 2], [2, 3, 3]];
    let positions: Vec<[u32; 3]> = [[0; 3], [1; 3]].into_iter().chain(grid).chain([[4; 3], [5; 3], [6; 3]]).collect();
    (sequence.images, sequence.positions, sequence.rope_delta) = (vec![image], Some(positions.into()), -2);
    let mut scheduler = scheduler(4);
    scheduler.add(sequence).unwrap();

    let expected = [
        (vec![0, 1, 2, 2, 0, 1, 2, 2, 0, 1, 2, 3], vec![(2, ImagePart { image, offset: 0, row: 2, len: 2 })]),
        (vec![2, 2, 4, 5, 3, 3, 4, 5, 2, 3, 4, 5], vec![(0, ImagePart { image, offset: 2, row: 0, len: 2 })]),
        (vec![6, 6, 6], vec![]),
        // The first token of the answer is token 9.
        (vec![7, 7, 7], vec![]),
    ];
    for (positions, parts) in expected {
        let batch = next(&mut scheduler);
        assert_eq!((batch.positions(), batch.image_parts()), (positions, parts));
        commit(&mut scheduler, &batch, 1);
    }
}

#[test]
fn rows_of_pictures_count_over_the_whole_step() {
    let mut scheduler = scheduler(16);
    scheduler.add(text(1, 0..3)).unwrap();
    let image = ImageSpan { start: 1, len: 2, hash: 7 };
    let mut second = text(2, 10..15);
    second.images = vec![image];
    scheduler.add(second).unwrap();
    assert_eq!(next(&mut scheduler).image_parts(), [(4, ImagePart { image, offset: 0, row: 1, len: 2 })]);
}

#[test]
fn a_batch_travels_to_another_thread() {
    fn sendable<T: Send + 'static>() {}
    sendable::<Batch>();
}
