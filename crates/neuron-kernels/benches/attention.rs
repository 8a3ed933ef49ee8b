//! Paged attention and the other ops of a decode step: milliseconds, best of several.
//!
//! `cargo bench -p neuron-kernels --bench attention`

use candle_core::{DType, Device, Result, Tensor};
use neuron_kernels::PagedBatch;
use std::time::{Duration, Instant};

const BLOCK: usize = 32;
/// Heads, KV heads and width: the demonstration model's and an 8B model's.
const HEADS: [(usize, usize, usize); 2] = [(8, 4, 32), (32, 8, 128)];
/// Sequences, new tokens of each, and their context.
const STEPS: [(usize, usize, usize); 6] = [(1, 1, 128), (1, 1, 2048), (16, 1, 512), (1, 128, 128), (1, 512, 512), (1, 128, 2048)];

fn main() -> Result<()> {
    println!("{:>12} {:>22} {:>6} {:>10} {:>9}", "heads", "sequences x new / ctx", "cache", "ms", "GFLOP/s");
    for (heads, kv_heads, width) in HEADS {
        for (sequences, new, context) in STEPS {
            for dtype in [DType::F32, DType::BF16] {
                let best = attention([heads, kv_heads, width], [sequences, new, context], dtype)?;
                // Each new token sees, on average, the context less half of what is new.
                let flops = 4.0 * (sequences * new * heads * width) as f64 * (context as f64 - (new - 1) as f64 / 2.0);
                println!(
                    "{:>12} {:>22} {:>6} {:>10.4} {:>9.1}",
                    format!("{heads}/{kv_heads} x {width}"),
                    format!("{sequences} x {new} / {context}"),
                    dtype.as_str(),
                    best.as_secs_f64() * 1e3,
                    flops * 1e-9 / best.as_secs_f64()
                );
            }
        }
    }
    decode_step()
}

fn attention([heads, kv_heads, width]: [usize; 3], [sequences, new, context]: [usize; 3], dtype: DType) -> Result<Duration> {
    let per_sequence = context.div_ceil(BLOCK);
    let cache = || Tensor::randn(0_f32, 1.0, (sequences * per_sequence, kv_heads, BLOCK, width), &Device::Cpu)?.to_dtype(dtype);
    let (k, v) = (cache()?, cache()?);
    let q = Tensor::randn(0_f32, 1.0, (sequences * new, heads, width), &Device::Cpu)?;
    let table = |i: usize| (0..per_sequence).map(|b| (i * per_sequence + b) as u32).collect::<Vec<_>>().into();
    let batch = PagedBatch {
        query_lens: vec![new; sequences],
        context_lens: vec![context; sequences],
        block_tables: (0..sequences).map(table).collect(),
        slots: vec![],
        block_size: BLOCK,
        tables: None,
    };
    best(|| neuron_kernels::paged_attention(&q, &k, &v, &batch, 0.1))
}

/// The ops of one token through six layers of the demonstration model.
fn decode_step() -> Result<()> {
    const LAYERS: usize = 6;
    let device = Device::Cpu;
    for dtype in [DType::F32, DType::BF16] {
        let weight = |n: usize, k: usize| Tensor::randn(0_f32, 0.05, (n, k), &device)?.to_dtype(dtype);
        let layers = (0..LAYERS)
            .map(|_| Ok([weight(512, 256)?, weight(256, 256)?, weight(1024, 256)?, weight(256, 512)?]))
            .collect::<Result<Vec<_>>>()?;
        let (head, norm) = (weight(1024, 256)?, Tensor::ones(256, DType::F32, &device)?);
        let (k, v) = (weight(8 * 4 * BLOCK, 32)?.reshape((8, 4, BLOCK, 32))?, weight(8 * 4 * BLOCK, 32)?.reshape((8, 4, BLOCK, 32))?);
        let (x, angles) = (Tensor::randn(0_f32, 1.0, (1, 256), &device)?, Tensor::zeros((1, 16), DType::F32, &device)?);
        let batch = PagedBatch {
            query_lens: vec![1],
            context_lens: vec![200],
            block_tables: vec![(0..7).collect::<Vec<_>>().into()],
            slots: vec![199],
            block_size: BLOCK,
            tables: None,
        };
        let time = best(|| {
            let mut residual = x.clone();
            let mut normed = neuron_kernels::rms_norm(&x, &norm, 1e-6)?;
            for [qkv, o, gate_up, down] in &layers {
                let qkv = neuron_kernels::linear(&normed, qkv, None)?.reshape((1, 16, 32))?;
                let q = neuron_kernels::rotary(&qkv.narrow(1, 0, 8)?, &angles, &angles)?;
                let rows = neuron_kernels::rotary(&qkv.narrow(1, 8, 4)?, &angles, &angles)?;
                neuron_kernels::write_kv(&rows, &qkv.narrow(1, 12, 4)?, &k, &v, &batch.slots)?;
                let attended = neuron_kernels::paged_attention(&q, &k, &v, &batch, 0.1)?.reshape((1, 256))?;
                let attended = neuron_kernels::linear(&attended, o, None)?;
                (normed, residual) = neuron_kernels::add_rms_norm(&attended, &residual, &norm, 1e-6)?;
                let gated = neuron_kernels::silu_mul(&neuron_kernels::linear(&normed, gate_up, None)?)?;
                let fed = neuron_kernels::linear(&gated, down, None)?;
                (normed, residual) = neuron_kernels::add_rms_norm(&fed, &residual, &norm, 1e-6)?;
            }
            neuron_kernels::linear(&normed, &head, None)
        })?;
        println!("one token through six layers of the demonstration model, {}: {:.4} ms", dtype.as_str(), time.as_secs_f64() * 1e3);
    }
    Ok(())
}

fn best(op: impl Fn() -> Result<Tensor>) -> Result<Duration> {
    let mut best = Duration::MAX;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(300) {
        let start = Instant::now();
        std::hint::black_box(op()?);
        best = best.min(start.elapsed());
    }
    Ok(best)
}
