//! One mixture of experts on a GPU, of the sizes of Qwen3-30B-A3B in bf16: microseconds, the rate at which the weights of the chosen
//! experts are read once, and the rate of the products.
//!
//! `cargo bench -p neuron-kernels --features cuda --bench moe`

use candle_core::{DType, Device, Result, Tensor};
use neuron_kernels::{device, moe_experts, moe_route};
use std::collections::BTreeSet;
use std::time::Instant;

const EXPERTS: usize = 128;
const CHOICES: usize = 8;
const HIDDEN: usize = 2048;
const INNER: usize = 768;

fn main() -> Result<()> {
    let gpu = match device::open(0) {
        Ok(gpu) => gpu,
        Err(error) => {
            println!("nothing to measure: {error}");
            return Ok(());
        }
    };
    // Experts repeat, addresses do not.
    let weights = |outputs: usize, k: usize| {
        let some = Tensor::randn(0_f32, (k as f32).powf(-0.5), (8, outputs, k), &Device::Cpu)?.to_dtype(DType::BF16)?.to_device(&gpu)?;
        Tensor::cat(&vec![some; EXPERTS / 8], 0)
    };
    let (gate_up, down) = (weights(2 * INNER, HIDDEN)?, weights(HIDDEN, INNER)?);
    println!("{:>7} {:>9} {:>10} {:>10} {:>10}", "tokens", "experts", "us", "GB/s", "TFLOP/s");
    for tokens in [1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096] {
        let x = Tensor::randn(0_f32, 1.0, (tokens, HIDDEN), &Device::Cpu)?.to_dtype(DType::BF16)?.to_device(&gpu)?;
        let logits = Tensor::randn(0_f32, 2.0, (tokens, EXPERTS), &Device::Cpu)?.to_device(&gpu)?;
        let chosen: BTreeSet<u32> = moe_route(&logits, CHOICES, true)?.0.flatten_all()?.to_vec1()?.into_iter().collect();
        let steps = |count: usize| {
            (0..count).try_for_each(|_| {
                let (ids, weights) = moe_route(&logits, CHOICES, true)?;
                moe_experts(&x, &gate_up, &down, &ids, &weights).map(drop)
            })
        };
        steps(5)?;
        device::check(&gpu)?;
        let count = if tokens > 512 { 20 } else { 100 };
        let start = Instant::now();
        steps(count)?;
        device::check(&gpu)?;
        let seconds = start.elapsed().as_secs_f64() / count as f64;
        let bytes = (chosen.len() * 3 * HIDDEN * INNER * 2) as f64;
        let products = (tokens * CHOICES * 3 * HIDDEN * INNER * 2) as f64;
        println!(
            "{tokens:>7} {:>9} {:>10.1} {:>10.0} {:>10.1}",
            chosen.len(),
            seconds * 1e6,
            bytes / seconds * 1e-9,
            products / seconds * 1e-12
        );
    }
    Ok(())
}
