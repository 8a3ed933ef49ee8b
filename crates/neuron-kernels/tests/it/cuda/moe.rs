//! Routers and experts on the GPU.

use super::{TYPES, assert_near, both, gpu, noise, values};
use candle_core::{DType, Tensor};
use neuron_kernels::{StepGraphs, moe_experts, moe_route};

#[test]
fn routes() {
    let gpu = gpu();
    for (tokens, experts, k) in [(1, 1, 1), (3, 4, 2), (5, 31, 31), (9, 128, 8), (2, 33, 5), (300, 100, 10)] {
        for dtype in TYPES {
            // Whole numbers tie often.
            for logits in [(noise((tokens, experts), 5) * 6.0).unwrap(), (noise((tokens, experts), 6) * 3.0).unwrap().round().unwrap()] {
                let (logits, on_gpu) = both(&logits, dtype, &gpu);
                for renormalise in [false, true] {
                    let what = format!("{dtype:?} {tokens} tokens, {k} of {experts}");
                    let (ids, weights) = moe_route(&logits, k, renormalise).unwrap();
                    let (gpu_ids, gpu_weights) = moe_route(&on_gpu, k, renormalise).unwrap();
                    assert_eq!(gpu_ids.to_vec2::<u32>().unwrap(), ids.to_vec2::<u32>().unwrap(), "{what}");
                    assert_near(&gpu_weights, &weights, DType::F32, &what);
                }
            }
        }
    }
}

/// Weights scaled so that results are about 1 whatever the width.
fn layer(experts: usize, hidden: usize, inner: usize) -> (Tensor, Tensor) {
    let gate_up = (noise((experts, 2 * inner, hidden), 2) * (3.0 / (hidden as f64).sqrt())).unwrap();
    (gate_up, (noise((experts, hidden, inner), 3) * (3.0 / (inner as f64).sqrt())).unwrap())
}

#[test]
fn experts_pair_by_pair_and_in_low_and_high_tiles() {
    let gpu = gpu();
    let cases = [
        (1, 1, 1, 3, 2),
        (1, 2, 4, 32, 64),
        (7, 2, 8, 33, 17),
        (4, 8, 16, 64, 40),
        (1, 8, 16, 2048, 768),
        (2, 12, 40, 1040, 24),
        (5, 8, 130, 264, 200),
        (40, 4, 9, 64, 40),
        (150, 3, 5, 136, 72),
        (64, 8, 128, 256, 96),
        (700, 8, 16, 512, 328),
    ];
    for (tokens, k, experts, hidden, inner) in cases {
        let (gate_up, down) = layer(experts, hidden, inner);
        // Some tokens crowd on few experts, some experts have none.
        let logits = noise((tokens, experts), 4).broadcast_mul(&(noise((1, experts), 9) * 6.0).unwrap()).unwrap();
        let (ids, weights) = moe_route(&logits, k, true).unwrap();
        for dtype in TYPES {
            let what = format!("{dtype:?} {tokens} tokens, {k} of {experts}, {hidden} by {inner}");
            let (x, gpu_x) = both(&noise((tokens, hidden), 1), dtype, &gpu);
            let ((gate_up, gpu_gate_up), (down, gpu_down)) = (both(&gate_up, dtype, &gpu), both(&down, dtype, &gpu));
            let want = moe_experts(&x, &gate_up, &down, &ids, &weights).unwrap();
            let (ids, weights) = (ids.to_device(&gpu).unwrap(), weights.to_device(&gpu).unwrap());
            let got = moe_experts(&gpu_x, &gpu_gate_up, &gpu_down, &ids, &weights).unwrap();
            assert_eq!(got.dtype(), dtype, "{what}");
            assert_near(&got, &want, dtype, &what);
        }
    }
}

#[test]
fn a_replayed_mixture_gives_the_bits_of_an_eager_one() {
    let gpu = gpu();
    let (experts, k, hidden, inner) = (16, 4, 64, 40);
    let (gate_up, down) = layer(experts, hidden, inner);
    let (gate_up, down) = (both(&gate_up, DType::BF16, &gpu).1, both(&down, DType::BF16, &gpu).1);
    let router = both(&(noise((experts, hidden), 8) * 2.0).unwrap(), DType::BF16, &gpu).1;
    for tokens in [1, 8, 9, 200] {
        let memory = both(&noise((tokens, hidden), 0), DType::BF16, &gpu).1;
        let forward = || {
            let (ids, weights) = moe_route(&neuron_kernels::linear_f32(&memory, &router)?, k, true)?;
            moe_experts(&memory, &gate_up, &down, &ids, &weights)
        };
        let mut graphs = StepGraphs::default();
        for round in 1..5 {
            memory.slice_set(&both(&noise((tokens, hidden), round), DType::BF16, &gpu).1, 0, 0).unwrap();
            let stepped = values(&graphs.run((tokens, 0), &gpu, forward).unwrap());
            let eager = values(&forward().unwrap());
            assert!(stepped.iter().zip(&eager).all(|(a, b)| a.to_bits() == b.to_bits()), "{tokens} tokens, round {round}");
            assert!(eager.iter().any(|x| *x != 0.0));
        }
    }
}
