//! A token has the same bits through a whole layer however its prompt is cut and whoever travels with it.

use candle_core::{DType, Device, Result, Tensor};
use neuron_kernels::{PagedBatch, add_rms_norm, embedding, linear, moe_experts, paged_attention, rms_norm, rotary, silu_mul, write_kv};
use proptest::prelude::*;

const HIDDEN: usize = 40;
const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const WIDTH: usize = 12;
const BLOCK: usize = 8;
const BLOCKS: usize = 24;
const EPS: f32 = 1e-6;

struct Layer {
    table: Tensor,
    norm: Tensor,
    qkv: Tensor,
    o: Tensor,
    gate_up: Tensor,
    down: Tensor,
    experts: [Tensor; 2],
}

fn wave(shape: &[usize], seed: f32) -> Result<Tensor> {
    let len = shape.iter().product();
    let data: Vec<f32> = (0..len).map(|i| ((i as f32 * 0.7 + seed) * 12.9898).sin()).collect();
    Tensor::from_vec(data, shape, &Device::Cpu)
}

impl Layer {
    fn new(dtype: DType) -> Result<Self> {
        let weight = |shape: &[usize], seed| (wave(shape, seed)? * 0.3)?.to_dtype(dtype);
        Ok(Self {
            table: weight(&[50, HIDDEN], 1.0)?,
            norm: wave(&[HIDDEN], 2.0)?,
            qkv: weight(&[(HEADS + 2 * KV_HEADS) * WIDTH, HIDDEN], 3.0)?,
            o: weight(&[HIDDEN, HEADS * WIDTH], 4.0)?,
            gate_up: weight(&[2 * 56, HIDDEN], 5.0)?,
            down: weight(&[HIDDEN, 56], 6.0)?,
            experts: [weight(&[3, 2 * 16, HIDDEN], 7.0)?, weight(&[3, HIDDEN, 16], 8.0)?],
        })
    }

    fn forward(&self, ids: &[u32], positions: &[u32], caches: &[Tensor; 2], batch: &PagedBatch) -> Result<Tensor> {
        let tokens = ids.len();
        let x = embedding(&Tensor::new(ids, &Device::Cpu)?, &self.table)?;
        let qkv = linear(&rms_norm(&x, &self.norm, EPS)?, &self.qkv, None)?.reshape((tokens, HEADS + 2 * KV_HEADS, WIDTH))?;
        let angles: Vec<f32> =
            positions.iter().flat_map(|&p| (0..WIDTH / 2).map(move |i| p as f32 / 10_f32.powf(i as f32 / 3.0))).collect();
        let angles = Tensor::from_vec(angles, (tokens, WIDTH / 2), &Device::Cpu)?;
        let (cos, sin) = (angles.cos()?, angles.sin()?);
        let q = rotary(&qkv.narrow(1, 0, HEADS)?, &cos, &sin)?;
        let k = rotary(&qkv.narrow(1, HEADS, KV_HEADS)?, &cos, &sin)?;
        write_kv(&k, &qkv.narrow(1, HEADS + KV_HEADS, KV_HEADS)?, &caches[0], &caches[1], &batch.slots)?;
        let attended = paged_attention(&q, &caches[0], &caches[1], batch, 0.3)?.reshape((tokens, HEADS * WIDTH))?;
        let (normed, x) = add_rms_norm(&linear(&attended, &self.o, None)?, &x, &self.norm, EPS)?;
        let fed = linear(&silu_mul(&linear(&normed, &self.gate_up, None)?)?, &self.down, None)?;
        let (normed, x) = add_rms_norm(&fed, &x, &self.norm, EPS)?;
        let routes: Vec<u32> = ids.iter().flat_map(|&id| [id % 3, (id + 1) % 3]).collect();
        let routes = Tensor::from_vec(routes, (tokens, 2), &Device::Cpu)?;
        let shares = Tensor::full(0.5_f32, (tokens, 2), &Device::Cpu)?;
        moe_experts(&normed, &self.experts[0], &self.experts[1], &routes, &shares)? + x
    }
}

/// A prompt, the chunks it is cut into, and the blocks it lies in.
#[derive(Clone)]
struct Prompt {
    ids: Vec<u32>,
    cuts: Vec<usize>,
    blocks: Vec<u32>,
}

/// Runs prompts side by side, one chunk of each per step, and gives the rows of each as bits.
fn run(layer: &Layer, prompts: &[Prompt], dtype: DType) -> Result<Vec<Vec<u32>>> {
    let cache = || Tensor::zeros((BLOCKS, KV_HEADS, BLOCK, WIDTH), dtype, &Device::Cpu);
    let caches = [cache()?, cache()?];
    let mut done = vec![0; prompts.len()];
    let mut rows = vec![Vec::new(); prompts.len()];
    for step in 0.. {
        let (mut ids, mut positions, mut members) = (Vec::new(), Vec::new(), Vec::new());
        let mut batch = PagedBatch { block_size: BLOCK, ..PagedBatch::default() };
        for (i, prompt) in prompts.iter().enumerate() {
            let left = prompt.ids.len() - done[i];
            let len = prompt.cuts.get(step).map_or(left, |&cut| cut.min(left));
            if len == 0 {
                continue;
            }
            let span = done[i]..done[i] + len;
            ids.extend(&prompt.ids[span.clone()]);
            positions.extend(span.clone().map(|p| p as u32));
            batch.slots.extend(span.clone().map(|p| prompt.blocks[p / BLOCK] * BLOCK as u32 + (p % BLOCK) as u32));
            batch.query_lens.push(len);
            batch.context_lens.push(span.end);
            batch.block_tables.push(prompt.blocks.clone().into());
            members.push((i, len));
            done[i] = span.end;
        }
        if members.is_empty() {
            return Ok(rows);
        }
        let out: Vec<Vec<f32>> = layer.forward(&ids, &positions, &caches, &batch)?.to_vec2()?;
        let mut out = out.into_iter();
        for (i, len) in members {
            rows[i].extend(out.by_ref().take(len).flatten().map(f32::to_bits));
        }
    }
    Ok(rows)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_cut_and_any_company_give_the_bits_of_the_lone_whole_prompt(
        ids in prop::collection::vec(0_u32..50, 1..80),
        others in prop::collection::vec(0_u32..50, 1..80),
        cuts in prop::collection::vec(1_usize..40, 0..6),
        other_cuts in prop::collection::vec(1_usize..40, 0..6),
        shift in 0_u32..12,
        half in any::<bool>(),
    ) {
        let dtype = if half { DType::BF16 } else { DType::F32 };
        let layer = Layer::new(dtype).expect("small weights");
        let run = |prompts: &[Prompt]| run(&layer, prompts, dtype).expect("steps that fit the cache");
        let lone = Prompt { ids: ids.clone(), cuts: vec![], blocks: (0..12).collect() };
        let cut = Prompt { ids, cuts, blocks: (0..12).map(|b| (b + shift) % 12).collect() };
        let other = Prompt { ids: others, cuts: other_cuts, blocks: (12..24).collect() };
        let want = run(&[lone]).remove(0);
        prop_assert_eq!(&run(&[cut.clone(), other.clone()])[0], &want);
        prop_assert_eq!(&run(&[other, cut])[1], &want);
    }
}
