//! What must not change a number does not: how a prompt is cut, who travels along, how many ranks there are, how the file is written.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use neuron_engine::device::collective::{Local, Shard};
use neuron_engine::models::config::Network;
use neuron_engine::weights::Precision;

use crate::checkpoints::{self, Copied};
use crate::fixtures::{self, FixtureSet};
use crate::parity::text_prompts;
use crate::parity_driver::{Driver, Line, Rows, assert_close, assert_same, causal, causal_rank, open};

/// Runs `check` on every language model of every set, with its text prompts.
fn on_every_decoder(check: impl Fn(&str, &Path, &[Vec<u32>])) {
    let mut checked = 0;
    for set in fixtures::sets() {
        for name in set.checkpoints() {
            let folder = set.checkpoint(&name);
            if let Network::Decoder(_) = open(&folder, Precision::CPU).0.network {
                let prompts = text_prompts(&set, &name);
                check(&name, &folder, &prompts);
                checked += 1;
            }
        }
    }
    assert!(checked > 0, "no language model was checked");
}

fn prefill(folder: &Path, ids: &[u32]) -> Tensor {
    prefill_on(Driver::open(folder), ids)
}

fn prefill_on(mut driver: Driver, ids: &[u32]) -> Tensor {
    let at = driver.add(Line::text(ids));
    driver.prefill(at)
}

#[test]
fn a_prompt_in_chunks_gives_the_bits_of_the_whole_prompt() {
    on_every_decoder(|name, folder, prompts| {
        for ids in prompts {
            let whole = prefill(folder, ids);
            let mut driver = Driver::open(folder);
            let at = driver.add(Line::text(ids));
            let (mut chunks, mut left) = (Vec::new(), ids.len());
            for len in [1, 7, 32, 33, 2, 64].into_iter().cycle() {
                let len = left.min(len);
                chunks.push(driver.step(&[(at, len)], Rows::All, None));
                left -= len;
                if left == 0 {
                    break;
                }
            }
            assert_same(&Tensor::cat(&chunks, 0).unwrap(), &whole, &format!("{name}, {} tokens", ids.len()));
        }
    });
}

#[test]
fn prompts_in_one_batch_give_the_bits_of_each_alone() {
    on_every_decoder(|name, folder, prompts| {
        let singles: Vec<_> = prompts.iter().map(|ids| prefill(folder, ids)).collect();
        let mut driver = Driver::open(folder);
        let lines: Vec<_> = prompts.iter().map(|ids| driver.add(Line::text(ids))).collect();
        // The first half of each prompt, then the rest backwards, so that the sequences are at different places.
        let halves: Vec<_> = lines.iter().map(|&at| (at, prompts[at].len() / 2)).collect();
        let first = driver.step(&halves, Rows::All, None);
        let rests: Vec<_> = lines.iter().rev().map(|&at| (at, prompts[at].len() - prompts[at].len() / 2)).collect();
        let second = driver.step(&rests, Rows::All, None);
        let (mut first_row, mut second_row) = (0, second.dim(0).unwrap());
        for ((at, half), single) in halves.into_iter().zip(&singles) {
            let rest = prompts[at].len() - half;
            second_row -= rest;
            let parts = [first.narrow(0, first_row, half).unwrap(), second.narrow(0, second_row, rest).unwrap()];
            first_row += half;
            assert_same(&Tensor::cat(&parts, 0).unwrap(), single, &format!("{name}, prompt {at}"));
        }
    });
}

#[test]
fn only_the_rows_asked_for_get_logits() {
    on_every_decoder(|name, folder, prompts| {
        let ids = &prompts[0];
        let all = prefill(folder, ids);
        let rows = [ids.len() as u32 - 1, 2, 0];
        let step = |rows: &[u32]| {
            let mut driver = Driver::open(folder);
            let at = driver.add(Line::text(ids));
            driver.step(&[(at, ids.len())], Rows::Only(rows), None)
        };
        assert_same(&step(&rows), &all.index_select(&Tensor::new(&rows, &Device::Cpu).unwrap(), 0).unwrap(), name);
        assert_eq!(step(&[]).dims(), [0, all.dim(1).unwrap()], "{name}");
    });
}

#[test]
fn two_ranks_give_the_logits_and_tokens_of_one() {
    on_every_decoder(|name, folder, prompts| {
        let ids = &prompts[0];
        let run = |mut driver: Driver| {
            let at = driver.add(Line::text(ids));
            let logits = driver.prefill(at);
            driver.greedy(at, &logits, 16);
            (logits, driver.lines.remove(at).tokens)
        };
        let (logits, tokens) = run(Driver::open(folder));
        let ranks = on_ranks(2, |shard, local| run(Driver::new(causal_rank(folder, Precision::CPU, Arc::new(local), shard))));
        for (rank, (rank_logits, rank_tokens)) in ranks.iter().enumerate() {
            assert_close(rank_logits, &logits, 1e-4, &format!("{name}, rank {rank} of 2"));
            assert_eq!(rank_tokens, &tokens, "{name}, rank {rank} of 2");
        }
        assert_same(&ranks[0].0, &ranks[1].0, &format!("{name}, both ranks"));
    });
}

#[test]
fn more_ranks_than_key_value_heads_share_them() {
    on_every_decoder(|name, folder, prompts| {
        let (config, _) = open(folder, Precision::CPU);
        let Network::Decoder(decoder) = config.network else { return };
        if !decoder.heads.query.is_multiple_of(4) {
            return;
        }
        let logits = prefill(folder, &prompts[0]);
        let rank = |shard, local| prefill_on(Driver::new(causal_rank(folder, Precision::CPU, Arc::new(local), shard)), &prompts[0]);
        for rank in on_ranks(4, rank) {
            assert_close(&rank, &logits, 1e-4, &format!("{name}, 4 ranks"));
        }
    });
}

fn on_ranks<T: Send>(world_size: usize, work: impl Fn(Shard, Local) -> T + Sync) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let spawn = |(rank, local)| scope.spawn(move || work(Shard { rank, world_size }, local));
        let ranks: Vec<_> = Local::group(world_size).into_iter().enumerate().map(spawn).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn widening_while_loading_or_in_the_file_gives_the_same_bits() {
    on_every_decoder(|name, folder, prompts| {
        let as_stored = prefill(folder, &prompts[0]);
        let widened = Precision { matrices: Some(DType::F32), ..Precision::CPU };
        assert_same(&prefill_on(Driver::new(causal(folder, widened)), &prompts[0]), &as_stored, &format!("{name}, widened"));
        let copy = Copied::of(folder).map(|_, tensor| tensor.to_dtype(DType::F32).unwrap()).write();
        assert_same(&prefill(copy.path(), &prompts[0]), &as_stored, &format!("{name}, saved as f32"));
    });
}

#[test]
fn a_checkpoint_saved_as_f16_computes_with_just_those_numbers() {
    on_every_decoder(|name, folder, prompts| {
        let narrow = |tensor: &Tensor| tensor.to_dtype(DType::F16).unwrap();
        let as_f16 = Copied::of(folder).map(|_, tensor| narrow(tensor)).write();
        let as_f32 = Copied::of(folder).map(|_, tensor| narrow(tensor).to_dtype(DType::F32).unwrap()).write();
        assert_same(&prefill(as_f16.path(), &prompts[0]), &prefill(as_f32.path(), &prompts[0]), name);
    });
}

#[test]
fn a_configuration_in_the_later_form_says_the_same() {
    let mut checked = 0;
    for set in fixtures::sets() {
        for name in set.checkpoints() {
            let folder = set.checkpoint(&name);
            let later = checkpoints::later_form(&fixtures::read_json(&folder.join("config.json")));
            let copy = tempfile::tempdir().unwrap();
            fs::write(copy.path().join("config.json"), later.to_string()).unwrap();
            let (Network::Decoder(earlier), Network::Decoder(later)) = (network(&folder), network(copy.path())) else { continue };
            assert_eq!(earlier, later, "{name}");
            checked += 1;
        }
    }
    assert!(checked > 0, "no configuration was compared");
}

fn network(folder: &Path) -> Network {
    neuron_engine::models::registry::load_config(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())).network
}

#[test]
fn fused_experts_of_a_seeing_model_compute_what_single_ones_do() {
    let mut checked = 0;
    for set in fixtures::sets() {
        for name in set.checkpoints() {
            checked += usize::from(compare_fused(&set, &name));
        }
    }
    assert!(checked > 0, "no mixture was compared");
}

/// The mixtures that renormalise, rewritten as the language half of a Qwen3-VL-MoE. A text has the same position on all three axes.
fn compare_fused(set: &FixtureSet, name: &str) -> bool {
    let folder = set.checkpoint(name);
    let config = fixtures::read_json(&folder.join("config.json"));
    if config["model_type"] != "qwen3_moe" || config["norm_topk_prob"] != true {
        return false;
    }
    let fused = checkpoints::as_vl_moe(&folder, &config);
    for ids in text_prompts(set, name) {
        let single = prefill(&folder, &ids);
        assert_same(&prefill(fused.path(), &ids), &single, name);
        let rank = |shard, local| prefill_on(Driver::new(causal_rank(fused.path(), Precision::CPU, Arc::new(local), shard)), &ids);
        for rank in on_ranks(2, rank) {
            assert_close(&rank, &single, 1e-4, &format!("{name}, fused, 2 ranks"));
        }
    }
    true
}
