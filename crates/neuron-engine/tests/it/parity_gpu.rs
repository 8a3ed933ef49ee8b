//! A GPU gives the numbers of the reference implementation in f32, and in bf16 what rounding leaves of them.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};
use neuron_engine::device::collective::{Shard, Solo};
use neuron_engine::models::config::Network;
use neuron_engine::models::registry::{self, Model};
use neuron_engine::weights::Precision;

use crate::parity::{all_checkpoints, compare_decoder, compare_encoder, text_prompts};
use crate::parity_driver::{Driver, Line, last_row, open, open_from};

const F32: Precision = Precision { matrices: Some(DType::F32), activations: DType::F32 };
/// Where the best logit leads by more than this, rounding to bf16 does not change it.
const MARGIN: f32 = 0.5;

fn gpu() -> Device {
    neuron_kernels::device::open(0).expect("these tests need a GPU")
}

#[test]
fn in_f32_every_checkpoint_gives_the_reference_logits_and_greedy_tokens() {
    let gpu = gpu();
    for (set, name) in all_checkpoints() {
        let (config, weights) = open_from(&set.checkpoint(&name), F32, &gpu);
        match config.network {
            Network::Decoder(_) => {
                let driver = |folder: &Path| Driver::open_on(folder, DType::F32, &gpu);
                assert!(compare_decoder(&set, &name, config.vision.as_ref(), driver) > 0, "{name}");
            }
            Network::Bert(_) => match registry::build(&config, &weights, Arc::new(Solo), Shard::WHOLE).unwrap() {
                Model::Encoder(encoder) => {
                    compare_encoder(encoder.as_ref(), &gpu, &set.tensors(&format!("{name}/batch")), "normalized", &name);
                }
                Model::Causal(_) => panic!("{name}"),
            },
        }
    }
}

#[test]
fn in_bf16_each_sides_best_token_is_among_the_others_five_best() {
    let gpu = gpu();
    for (set, name) in all_checkpoints() {
        if matches!(open(&set.checkpoint(&name), F32).0.network, Network::Bert(_)) {
            continue;
        }
        for prompt in text_prompts(&set, &name) {
            let last_logits = |dtype, device: &Device| {
                let mut driver = Driver::open_on(&set.checkpoint(&name), dtype, device);
                let at = driver.add(Line::text(&prompt));
                last_row(&driver.prefill(at))
            };
            let rows = [last_logits(DType::BF16, &gpu), last_logits(DType::F32, &Device::Cpu)];
            let ranked = rows.each_ref().map(|row| {
                let mut ids: Vec<usize> = (0..row.len()).collect();
                ids.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
                ids
            });
            for (mine, other) in [(0, 1), (1, 0)] {
                assert!(ranked[other][..5].contains(&ranked[mine][0]), "{name}: {:?} and {:?}", &ranked[0][..5], &ranked[1][..5]);
            }
            if rows[1][ranked[1][0]] - rows[1][ranked[1][1]] > MARGIN {
                assert_eq!(ranked[0][0], ranked[1][0], "{name}: the best token");
            }
        }
    }
}
