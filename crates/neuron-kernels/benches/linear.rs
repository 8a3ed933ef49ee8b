//! Our product beside candle's, in turns in one run: milliseconds (best of several) and the ratio of ours to candle's.
//!
//! `cargo bench -p neuron-kernels --bench linear`

use candle_core::{DType, Device, Result, Tensor};
use std::time::{Duration, Instant};

const ROWS: [usize; 6] = [1, 2, 4, 16, 64, 256];
/// Inner size and outputs.
const SHAPES: [(usize, usize); 5] = [(256, 512), (256, 1024), (1024, 3072), (3072, 1024), (4096, 4096)];

fn main() -> Result<()> {
    let device = Device::Cpu;
    println!("{:>5} {:>11} {:>10} {:>10} {:>7} {:>9} {:>10} {:>10}", "rows", "k x n", "candle", "f32", "ratio", "GFLOP/s", "bf16", "f16");
    for (k, n) in SHAPES {
        let w = Tensor::randn(0_f32, 1.0, (n, k), &device)?;
        let (bf16, f16) = (w.to_dtype(DType::BF16)?, w.to_dtype(DType::F16)?);
        for rows in ROWS {
            let x = Tensor::randn(0_f32, 1.0, (rows, k), &device)?;
            let [candle, ours, bf16, f16] = best_in_turns([
                &|| x.matmul(&w.t()?),
                &|| neuron_kernels::linear(&x, &w, None),
                &|| neuron_kernels::linear(&x, &bf16, None),
                &|| neuron_kernels::linear(&x, &f16, None),
            ])?;
            let ms = |t: Duration| t.as_secs_f64() * 1e3;
            let rate = 2e-9 * (rows * n * k) as f64 / ours.as_secs_f64();
            println!(
                "{rows:>5} {:>11} {:>10.4} {:>10.4} {:>7.2} {rate:>9.1} {:>10.4} {:>10.4}",
                format!("{k}x{n}"),
                ms(candle),
                ms(ours),
                ms(ours) / ms(candle),
                ms(bf16),
                ms(f16)
            );
        }
    }
    Ok(())
}

/// The shortest time of each, all measured in the same half second so that none has a quieter machine.
fn best_in_turns<const N: usize>(ops: [&dyn Fn() -> Result<Tensor>; N]) -> Result<[Duration; N]> {
    let mut best = [Duration::MAX; N];
    let start = Instant::now();
    let mut turns = 0;
    while turns < 5 || start.elapsed() < Duration::from_millis(500) {
        for (best, op) in best.iter_mut().zip(ops) {
            let start = Instant::now();
            std::hint::black_box(op()?);
            *best = start.elapsed().min(*best);
        }
        turns += 1;
    }
    Ok(best)
}
