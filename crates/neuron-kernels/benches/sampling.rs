//! Drawing tokens on a GPU: microseconds a step, uploads and launches included, and the rate at which the logits are read once.
//!
//! `cargo bench -p neuron-kernels --features cuda --bench sampling`

use candle_core::{Device, Result, Tensor};
use neuron_kernels::device;
use neuron_kernels::sampling::{Row, Sampler};
use std::time::Instant;

const VOCABULARY: usize = 151_936;
const STEPS: u32 = 200;

fn main() -> Result<()> {
    let gpu = match device::open(0) {
        Ok(gpu) => gpu,
        Err(error) => {
            println!("nothing to measure: {error}");
            return Ok(());
        }
    };
    let cases: [(&str, Row<'_>); 5] = [
        ("greedy", Row::greedy()),
        ("temperature 1", Row { temperature: 1.0, ..Row::greedy() }),
        ("0.6, top-k 20, top-p 0.95", Row { temperature: 0.6, top_k: 20, top_p: 0.95, ..Row::greedy() }),
        ("0.7, top-p 0.9", Row { temperature: 0.7, top_p: 0.9, ..Row::greedy() }),
        ("greedy, 5 log-probabilities", Row { logprobs: Some(5), ..Row::greedy() }),
    ];
    println!("{:>30} {:>5} {:>10} {:>10}", "row", "rows", "us", "GB/s");
    for rows in [1, 8, 64, 256] {
        let logits = (Tensor::randn(0_f32, 3.0, (rows, VOCABULARY), &Device::Cpu)?).to_device(&gpu)?;
        for (name, row) in &cases {
            let all: Vec<Row<'_>> =
                (0..rows as u64).map(|i| Row { uniform: i.wrapping_mul(0x9e37_79b9_7f4a_7c15), ..row.clone() }).collect();
            let mut sampler = Sampler::default();
            let mut steps = |count| (0..count).try_for_each(|_| sampler.draw(&logits, &all).map(drop));
            steps(20)?;
            device::check(&gpu)?;
            let start = Instant::now();
            steps(STEPS)?;
            device::check(&gpu)?;
            let seconds = start.elapsed().as_secs_f64() / f64::from(STEPS);
            println!("{name:>30} {rows:>5} {:>10.1} {:>10.0}", seconds * 1e6, (rows * VOCABULARY * 4) as f64 / seconds * 1e-9);
        }
    }
    Ok(())
}
