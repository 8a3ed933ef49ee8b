//! The CUDA form of each op against its CPU form, on the same numbers, over shapes that are odd on purpose.

mod moe;
mod sampling;
mod staging;

use candle_core::{DType, Device, Result, Tensor};
use neuron_kernels::{
    DRAWN, Inbox, PagedBatch, PagedTables, PreNorm, QueriesAndKeys, StepGraphs, add_rms_norm, attend, embedding, gated_linear, gelu_erf,
    gelu_tanh, interleave, layer_norm, linear, linear_f32, norm_gated_linear, norm_linear, paged_attention, resolve_ids, rms_norm, rotary,
    rotary_table, rotate_and_cache, segment_attention, silu_mul,
};

const TYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

fn gpu() -> Device {
    neuron_kernels::device::open(0).expect("these tests need a GPU")
}

/// Numbers in (-1, 1) that depend only on the shape's size and the seed.
fn noise(shape: impl Into<candle_core::Shape>, seed: u64) -> Tensor {
    let shape = shape.into();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    let data: Vec<f32> = (0..shape.elem_count()).map(|_| next()).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

/// The same numbers twice: rounded to `dtype` in f32 on the CPU, and in `dtype` on the GPU.
fn both(x: &Tensor, dtype: DType, gpu: &Device) -> (Tensor, Tensor) {
    let rounded = x.to_dtype(dtype).unwrap();
    (rounded.to_dtype(DType::F32).unwrap(), rounded.to_device(gpu).unwrap())
}

fn values(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_device(&Device::Cpu).unwrap().to_vec1().unwrap()
}

/// Relative error of the whole in the Euclidean norm: rounding stays far below these, a wrong index does not.
#[track_caller]
fn assert_near(got: &Tensor, want: &Tensor, dtype: DType, what: &str) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let (got, want) = (values(got), values(want));
    assert!(got.iter().all(|x| x.is_finite()), "{what}: not finite");
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    let error = norm(&mut got.iter().zip(&want).map(|(a, b)| a - b)) / norm(&mut want.iter().copied()).max(1e-20);
    let bound = match dtype {
        DType::F32 => 1e-5,
        DType::F16 => 1e-3,
        _ => 8e-3,
    };
    assert!(error < bound, "{what}: relative error {error:.2e}");
}

#[test]
fn norms() {
    let gpu = gpu();
    for dtype in TYPES {
        for (rows, width) in [(1, 8), (3, 7), (5, 33), (2, 1024), (300, 4096), (3, 5120), (2, 12288), (1, 40000)] {
            let what = format!("{dtype:?} [{rows}, {width}]");
            let (x, gx) = both(&noise((rows, width), 1), dtype, &gpu);
            let (y, gy) = both(&noise((rows, width), 2), dtype, &gpu);
            let (w, gw) = both(&noise(width, 3), dtype, &gpu);
            let (b, gb) = both(&noise(width, 4), dtype, &gpu);
            assert_near(&rms_norm(&gx, &gw, 1e-6).unwrap(), &rms_norm(&x, &w, 1e-6).unwrap(), dtype, &what);
            let (normed, sum) = add_rms_norm(&x, &y, &w, 1e-6).unwrap();
            let (gpu_normed, gpu_sum) = add_rms_norm(&gx, &gy, &gw, 1e-6).unwrap();
            assert_near(&gpu_sum, &sum, dtype, &what);
            assert_near(&gpu_normed, &normed, dtype, &what);
            assert_near(&layer_norm(&gx, &gw, &gb, 1e-6).unwrap(), &layer_norm(&x, &w, &b, 1e-6).unwrap(), dtype, &what);
        }
    }
}

#[test]
fn elementwise_and_rows() {
    let gpu = gpu();
    for dtype in TYPES {
        for (rows, width) in [(1, 1), (3, 5), (9, 512), (100, 776)] {
            let what = format!("{dtype:?} [{rows}, {width}]");
            let (x, gx) = both(&(noise((rows, 2 * width), 1) * 8.0).unwrap(), dtype, &gpu);
            assert_near(&silu_mul(&gx).unwrap(), &silu_mul(&x).unwrap(), dtype, &what);
            assert_near(&gelu_tanh(&gx).unwrap(), &gelu_tanh(&x).unwrap(), dtype, &what);
            assert_near(&gelu_erf(&gx).unwrap(), &gelu_erf(&x).unwrap(), dtype, &what);
            let ids: Vec<u32> = (0..7).map(|i| (i * 5 % rows) as u32).collect();
            let (ids, gpu_ids) = (Tensor::new(ids.as_slice(), &Device::Cpu).unwrap(), Tensor::new(ids.as_slice(), &gpu).unwrap());
            assert_near(&embedding(&gpu_ids, &gx).unwrap(), &embedding(&ids, &x).unwrap(), DType::F32, &what);
        }
    }
    let ids = Tensor::new(&[5, DRAWN | 1, DRAWN, 6], &gpu).unwrap();
    let drawn = Tensor::new(&[70u32, 80], &gpu).unwrap();
    resolve_ids(&ids, &drawn).unwrap();
    assert_eq!(ids.to_vec1::<u32>().unwrap(), [5, 80, 70, 6]);
}

#[test]
fn products() {
    let gpu = gpu();
    for dtype in TYPES {
        for (rows, outputs, k) in [
            (1, 1, 8),
            (1, 33, 96),
            (1, 1000, 4096),
            (2, 7, 264),
            (3, 130, 1032),
            (4, 64, 12288),
            (1, 5, 7),
            (5, 64, 72),
            (17, 100, 128),
            (300, 257, 520),
            (1, 3, 8200),
        ] {
            let what = format!("{dtype:?} rows {rows}, outputs {outputs}, k {k}");
            let (x, gx) = both(&noise((rows, k), 1), dtype, &gpu);
            let (w, gw) = both(&noise((outputs, k), 2), dtype, &gpu);
            let (b, gb) = both(&noise(outputs, 3), dtype, &gpu);
            assert_near(&linear(&gx, &gw, None).unwrap(), &linear(&x, &w, None).unwrap(), dtype, &what);
            assert_near(&linear(&gx, &gw, Some(&gb)).unwrap(), &linear(&x, &w, Some(&b)).unwrap(), dtype, &what);
            let wide = linear_f32(&gx, &gw).unwrap();
            assert_eq!(wide.dtype(), DType::F32);
            assert_near(&wide, &linear_f32(&x, &w).unwrap(), DType::F16, &what);
            let (w2, gw2) = both(&(noise((2 * outputs, k), 4) / (k as f64).sqrt()).unwrap(), dtype, &gpu);
            assert_near(&gated_linear(&gx, &gw2, None).unwrap(), &gated_linear(&x, &w2, None).unwrap(), dtype, &what);
        }
    }
}

#[test]
fn products_of_normed_rows() {
    let gpu = gpu();
    for dtype in TYPES {
        for (rows, outputs, width) in
            [(1, 3, 8), (1, 37, 1024), (1, 60, 5120), (1, 90, 8192), (2, 64, 264), (3, 33, 1032), (4, 48, 4096), (5, 16, 72), (1, 8, 12)]
        {
            let what = format!("{dtype:?} rows {rows}, outputs {outputs}, width {width}");
            let [(stream, gpu_stream), (last, gpu_last)] = [1, 2].map(|seed| both(&noise((rows, width), seed), dtype, &gpu));
            let (weight, gpu_weight) = both(&noise(width, 3), dtype, &gpu);
            let (w, gpu_w) = both(&(noise((2 * outputs, width), 4) / (width as f64).sqrt()).unwrap(), dtype, &gpu);
            let (b, gpu_b) = both(&noise(2 * outputs, 5), dtype, &gpu);
            for joined in [true, false] {
                let x = PreNorm { stream: &stream, last: joined.then_some(&last), weight: &weight, eps: 1e-6 };
                let gpu_x = PreNorm { stream: &gpu_stream, last: joined.then_some(&gpu_last), weight: &gpu_weight, eps: 1e-6 };
                let (want, want_sum) = norm_linear(x, &w, Some(&b)).unwrap();
                let (got, sum) = norm_linear(gpu_x, &gpu_w, Some(&gpu_b)).unwrap();
                assert_near(&got, &want, dtype, &what);
                assert_near(&sum, &want_sum, dtype, &what);
                let (want, want_sum) = norm_gated_linear(x, &w, None).unwrap();
                let (got, sum) = norm_gated_linear(gpu_x, &gpu_w, None).unwrap();
                assert_near(&got, &want, dtype, &what);
                assert_near(&sum, &want_sum, dtype, &what);
            }
        }
    }
}

#[test]
fn positions() {
    let gpu = gpu();
    for (tokens, heads, kv_heads, width, block, normed) in [
        (1, 2, 1, 8, 32, true),
        (5, 4, 2, 16, 32, true),
        (33, 32, 8, 128, 32, true),
        (7, 3, 3, 64, 16, false),
        (2, 1, 1, 256, 32, true),
        (3, 2, 1, 80, 32, true),
        (4, 1, 1, 20, 32, true),
    ] {
        let places: Vec<u32> = (0..3 * tokens as u32).map(|i| i * 97 % 5000).collect();
        let frequencies = noise((3, width / 2), 9).abs().unwrap();
        let places = Tensor::from_vec(places, (3, tokens), &Device::Cpu).unwrap();
        let (cos, sin) = rotary_table(&places, &frequencies).unwrap();
        let (gpu_cos, gpu_sin) = rotary_table(&places.to_device(&gpu).unwrap(), &frequencies.to_device(&gpu).unwrap()).unwrap();
        assert_near(&gpu_cos, &cos, DType::F16, "cos");
        assert_near(&gpu_sin, &sin, DType::F16, "sin");
        for dtype in TYPES {
            let what = format!("{dtype:?} {tokens} tokens of {heads}/{kv_heads} heads of {width}");
            let (x, gx) = both(&noise((tokens, heads, width), 5), dtype, &gpu);
            let (on_gpu_cos, on_gpu_sin) = (cos.to_device(&gpu).unwrap(), sin.to_device(&gpu).unwrap());
            assert_near(&rotary(&gx, &on_gpu_cos, &on_gpu_sin).unwrap(), &rotary(&x, &cos, &sin).unwrap(), dtype, &what);

            let (qkv, gpu_qkv) = both(&noise((tokens, (heads + 2 * kv_heads) * width), 1), dtype, &gpu);
            let ((q_norm, gpu_q_norm), (k_norm, gpu_k_norm)) = (both(&noise(width, 2), dtype, &gpu), both(&noise(width, 3), dtype, &gpu));
            let blocks = tokens.div_ceil(block) + 2;
            let caches =
                || [noise((blocks, kv_heads, block, width), 6), noise((blocks, kv_heads, block, width), 7)].map(|c| both(&c, dtype, &gpu));
            let [(k_cache, gpu_k_cache), (v_cache, gpu_v_cache)] = caches();
            let slots: Vec<u32> = (0..tokens as u32).map(|i| (blocks * block) as u32 - 1 - i).collect();
            let batch = PagedBatch { slots, block_size: block, ..PagedBatch::default() };
            let gpu_batch = PagedBatch { tables: Some(PagedTables::upload(&batch, &gpu).unwrap()), ..batch.clone() };
            let norms = normed.then_some((&q_norm, &k_norm, 1e-6));
            let q = rotate_and_cache(&qkv, QueriesAndKeys { norms, angles: (&cos, &sin) }, &k_cache, &v_cache, &batch).unwrap();
            let norms = normed.then_some((&gpu_q_norm, &gpu_k_norm, 1e-6));
            let how = QueriesAndKeys { norms, angles: (&on_gpu_cos, &on_gpu_sin) };
            let gpu_q = rotate_and_cache(&gpu_qkv, how, &gpu_k_cache, &gpu_v_cache, &gpu_batch).unwrap();
            assert_near(&gpu_q, &q, dtype, &what);
            assert_near(&gpu_k_cache, &k_cache, dtype, &what);
            assert_near(&gpu_v_cache, &v_cache, dtype, &what);
        }
    }
}

/// Blocks of a pool in an order of their own, so that tables are neither sorted nor contiguous.
fn scattered(count: usize, pool: usize, seed: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * 37 + seed * 11) % pool) as u32).collect()
}

#[test]
fn attention_over_a_paged_cache() {
    const BLOCK: usize = 32;
    const POOL: usize = 521;
    let gpu = gpu();
    // Query and KV heads, their width, and (tokens before, new tokens) of each sequence.
    type Case = (usize, usize, usize, &'static [(usize, usize)]);
    let cases: &[Case] = &[
        (1, 1, 16, &[(0, 1)]),
        (4, 2, 64, &[(30, 1), (31, 1), (32, 1)]),
        (32, 8, 128, &[(999, 1)]),
        (32, 8, 128, &[(4999, 1), (0, 1), (127, 1), (128, 1), (2000, 1)]),
        (8, 8, 128, &[(63, 1), (700, 1)]),
        (16, 1, 64, &[(300, 1), (5, 1), (1023, 1)]),
        (3, 3, 40, &[(77, 1), (9, 3)]),
        (4, 4, 256, &[(40, 1), (3, 5)]),
        (32, 8, 128, &[(0, 300)]),
        (4, 2, 64, &[(0, 1), (0, 33), (100, 64), (517, 1), (31, 129)]),
        (8, 1, 128, &[(0, 2), (64, 65), (1000, 40)]),
        (16, 8, 128, &[(5, 1000), (0, 77), (0, 2)]),
        (4, 2, 64, &[(600, 300), (0, 128), (2000, 1)]),
        (2, 2, 24, &[(0, 70), (13, 1)]),
        (2, 1, 8, &[(5, 4)]),
        (2, 2, 12, &[(5, 4), (40, 1)]),
    ];
    for dtype in TYPES {
        for &(heads, kv_heads, width, spans) in cases {
            let what = format!("{dtype:?} {heads}/{kv_heads} heads of {width}, {spans:?}");
            let tokens: usize = spans.iter().map(|span| span.1).sum();
            let (q, gpu_q) = both(&(noise((tokens, heads, width), 1) * 2.0).unwrap(), dtype, &gpu);
            let [(k, gpu_k), (v, gpu_v)] = [2, 3].map(|seed| both(&noise((POOL, kv_heads, BLOCK, width), seed), dtype, &gpu));
            let batch = PagedBatch {
                query_lens: spans.iter().map(|span| span.1).collect(),
                context_lens: spans.iter().map(|span| span.0 + span.1).collect(),
                block_tables: spans
                    .iter()
                    .enumerate()
                    .map(|(i, span)| scattered((span.0 + span.1).div_ceil(BLOCK), POOL, i).into())
                    .collect(),
                block_size: BLOCK,
                ..PagedBatch::default()
            };
            let scale = (width as f32).powf(-0.5);
            let want = paged_attention(&q, &k, &v, &batch, scale).unwrap();
            let gpu_batch = PagedBatch { tables: Some(PagedTables::upload(&batch, &gpu).unwrap()), ..PagedBatch::default() };
            for round in 0..2 {
                let got = paged_attention(&gpu_q, &gpu_k, &gpu_v, &gpu_batch, scale).unwrap();
                assert_near(&got, &want, dtype, &format!("{what}, round {round}"));
            }
        }
    }
}

#[test]
fn attention_from_the_projection_on() {
    const BLOCK: usize = 32;
    const POOL: usize = 257;
    let gpu = gpu();
    // Query and KV heads, their width, whether they are normed, and the tokens before the new one of each sequence.
    type Case = (usize, usize, usize, bool, &'static [usize]);
    let cases: &[Case] = &[
        (2, 1, 16, true, &[0]),
        (4, 2, 64, true, &[30, 31, 32, 33]),
        (32, 8, 128, true, &[159]),
        (32, 8, 128, false, &[4999, 0, 127, 128, 2000, 95]),
        (16, 8, 128, true, &[63, 700, 64]),
        (16, 1, 64, true, &[300, 5, 1023]),
        (3, 3, 48, true, &[77, 9]),
        (6, 2, 80, true, &[77, 256]),
        (4, 4, 256, true, &[40]),
        (2, 2, 24, true, &[33]),
        (17, 1, 32, true, &[50]),
    ];
    for dtype in TYPES {
        for &(heads, kv_heads, width, normed, before) in cases {
            let what = format!("{dtype:?} {heads}/{kv_heads} heads of {width}, {before:?}");
            let tokens = before.len();
            let (qkv, gpu_qkv) = both(&noise((tokens, (heads + 2 * kv_heads) * width), 1), dtype, &gpu);
            let [(k, gpu_k), (v, gpu_v)] = [2, 3].map(|seed| both(&noise((POOL, kv_heads, BLOCK, width), seed), dtype, &gpu));
            let [(q_norm, gpu_q_norm), (k_norm, gpu_k_norm)] = [4, 5].map(|seed| both(&noise(width, seed), dtype, &gpu));
            let [cos, sin] = [6, 7].map(|seed| noise((tokens, width / 2), seed));
            let [gpu_cos, gpu_sin] = [&cos, &sin].map(|angles| angles.to_device(&gpu).unwrap());
            // Sequences share no block: each writes one.
            let mut pool = 0..POOL as u32;
            let block_tables: Vec<Vec<u32>> = before.iter().map(|before| pool.by_ref().take(before / BLOCK + 1).collect()).collect();
            let slot = |(table, before): (&Vec<u32>, &usize)| table[before / BLOCK] * BLOCK as u32 + (before % BLOCK) as u32;
            let batch = PagedBatch {
                query_lens: vec![1; tokens],
                context_lens: before.iter().map(|before| before + 1).collect(),
                slots: block_tables.iter().zip(before).map(slot).collect(),
                block_tables: block_tables.into_iter().map(Into::into).collect(),
                block_size: BLOCK,
                ..PagedBatch::default()
            };
            let gpu_batch = PagedBatch { tables: Some(PagedTables::upload(&batch, &gpu).unwrap()), ..PagedBatch::default() };
            let scale = (width as f32).powf(-0.5);
            let how = QueriesAndKeys { norms: normed.then_some((&q_norm, &k_norm, 1e-6)), angles: (&cos, &sin) };
            let want = attend(&qkv, how, &k, &v, &batch, scale).unwrap();
            let how = QueriesAndKeys { norms: normed.then_some((&gpu_q_norm, &gpu_k_norm, 1e-6)), angles: (&gpu_cos, &gpu_sin) };
            for round in 0..2 {
                let got = attend(&gpu_qkv, how, &gpu_k, &gpu_v, &gpu_batch, scale).unwrap();
                assert_near(&got, &want, dtype, &format!("{what}, round {round}"));
                assert_near(&gpu_k, &k, dtype, &what);
                assert_near(&gpu_v, &v, dtype, &what);
            }
        }
    }
}

#[test]
fn padded_sequences_are_inert() {
    let gpu = gpu();
    let (_, q) = both(&noise((4, 8, 64), 1), DType::BF16, &gpu);
    let [(_, k), (_, v)] = [2, 3].map(|seed| both(&noise((9, 2, 32, 64), seed), DType::BF16, &gpu));
    let batch = |count: usize| {
        let (mut contexts, mut tables) =
            (vec![70, 0, 33, 0], vec![vec![3u32, 1, 7].into(), vec![0].into(), vec![5u32, 2].into(), vec![0].into()]);
        contexts.truncate(count);
        tables.truncate(count);
        let batch = PagedBatch {
            query_lens: vec![1; count],
            context_lens: contexts,
            block_tables: tables,
            block_size: 32,
            ..PagedBatch::default()
        };
        PagedBatch { tables: Some(PagedTables::upload(&batch, &gpu).unwrap()), ..PagedBatch::default() }
    };
    let all = values(&paged_attention(&q, &k, &v, &batch(4), 0.125).unwrap());
    let first = values(&paged_attention(&q.narrow(0, 0, 1).unwrap(), &k, &v, &batch(1), 0.125).unwrap());
    assert_eq!(all[..512], first, "a row beside padding has the same bits");
    assert!(all[512..1024].iter().chain(&all[1536..]).all(|x| *x == 0.0), "a padded row is zero");
}

#[test]
fn attention_inside_segments() {
    let gpu = gpu();
    for dtype in TYPES {
        for (heads, width, lens) in [
            (1, 8, &[1usize][..]),
            (4, 32, &[5, 200, 64]),
            (16, 72, &[256, 1, 63, 130]),
            (2, 80, &[700]),
            (3, 128, &[33, 40]),
            (2, 64, &[128, 128]),
        ] {
            let tokens: usize = lens.iter().sum();
            let [(q, gpu_q), (k, gpu_k), (v, gpu_v)] = [1, 2, 3].map(|seed| both(&noise((tokens, heads, width), seed), dtype, &gpu));
            let got = segment_attention(&gpu_q, &gpu_k, &gpu_v, lens, 0.2).unwrap();
            assert_near(
                &got,
                &segment_attention(&q, &k, &v, lens, 0.2).unwrap(),
                dtype,
                &format!("{dtype:?} {heads} heads of {width}, {lens:?}"),
            );
        }
    }
}

#[test]
fn a_replayed_step_gives_the_bits_of_an_eager_one() {
    let gpu = gpu();
    let weights: Vec<(Tensor, Tensor)> = (0..6)
        .map(|i| (noise((512, 128), 20 + i), noise((128, 256), 40 + i)))
        .map(|(a, b)| (both(&(a * 0.1).unwrap(), DType::BF16, &gpu).1, both(&(b * 0.1).unwrap(), DType::BF16, &gpu).1))
        .collect();
    let norm = both(&noise(128, 3), DType::BF16, &gpu).1;
    let table = both(&noise((50, 128), 4), DType::BF16, &gpu).1;
    let forward = |ids: &Tensor| -> Result<Tensor> {
        let mut x = embedding(ids, &table)?;
        let mut last = x.clone();
        for (gate_up, down) in &weights {
            let (inner, sum) = norm_gated_linear(PreNorm { stream: &x, last: Some(&last), weight: &norm, eps: 1e-6 }, gate_up, None)?;
            x = sum;
            last = linear(&inner, down, None)?;
        }
        linear_f32(&add_rms_norm(&last, &x, &norm, 1e-6)?.0, &table)
    };
    for rows in [1usize, 3, 4, 32] {
        let (mut graphs, mut inbox) = (StepGraphs::default(), Inbox::default());
        for round in 0..6u32 {
            let ids: Vec<u32> = (0..rows as u32).map(|i| (i * 7 + round * 11) % 50).collect();
            let inputs = inbox.put(&ids, &gpu).unwrap();
            let stepped = graphs.run((rows, 0), &gpu, || forward(&inputs)).unwrap();
            let stepped = values(&stepped);
            let eager = values(&forward(&Tensor::new(ids.as_slice(), &gpu).unwrap()).unwrap());
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&stepped), bits(&eager), "{rows} rows, round {round}");
            assert!(eager.iter().any(|x| *x != 0.0));
        }
    }
}

#[test]
fn parts_of_ranks_come_to_lie_side_by_side() {
    let gpu = gpu();
    for (parts, rows, columns) in [(2, 1, 1), (2, 3, 5), (4, 33, 129), (2, 256, 75_968)] {
        for dtype in TYPES {
            let (cpu, gpu) = both(&noise((parts, rows, columns), 1), dtype, &gpu);
            assert_eq!(values(&interleave(&gpu).unwrap()), values(&interleave(&cpu).unwrap()), "{parts} {rows} {columns} {dtype:?}");
        }
    }
}
