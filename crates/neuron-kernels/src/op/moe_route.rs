//! A router's choice: the experts that each token visits, and how much each of them counts.

use crate::cpu::view::f32s;
#[cfg(feature = "cuda")]
use crate::cuda::{Gpu, Launch, suffix};
#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::{Device, Layout, Result, Storage, Tensor, bail};

/// Softmax over all experts, then the `k` most probable, best first; ties rank by lower expert.
///
/// `logits` is `[T, E]` (f32 on the CPU; f32, bf16 or f16 on a GPU). The results are the experts, `[T, k]` u32, and their
/// probabilities, `[T, k]` f32, which `renormalise` scales to sum to 1.
///
/// # Errors
/// When `logits` is not that, or `k` is not from 1 to E.
pub fn moe_route(logits: &Tensor, k: usize, renormalise: bool) -> Result<(Tensor, Tensor)> {
    match logits.dims() {
        &[_, experts] if (1..=experts).contains(&k) => {}
        &[_, experts] => bail!("moe_route: {k} of {experts} experts cannot be chosen"),
        dims => bail!("moe_route: logits must be [T, E], got {dims:?}"),
    }
    let logits = logits.contiguous()?;
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(logits.device())? {
        return on_gpu(&gpu, &logits, k, renormalise);
    }
    let (tokens, experts) = logits.dims2()?;
    let (storage, layout) = logits.storage_and_layout();
    let logits = on_cpu(&storage, layout)?;
    let (mut ids, mut weights) = (Vec::with_capacity(tokens * k), Vec::with_capacity(tokens * k));
    for row in logits.chunks_exact(experts) {
        let chosen = choose(row, k, renormalise);
        ids.extend(chosen.iter().map(|choice| choice.expert));
        weights.extend(chosen.iter().map(|choice| choice.weight));
    }
    Ok((Tensor::from_vec(ids, (tokens, k), &Device::Cpu)?, Tensor::from_vec(weights, (tokens, k), &Device::Cpu)?))
}

fn on_cpu<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    match storage {
        Storage::Cpu(storage) => f32s("moe_route", "logits", storage, layout),
        _ => bail!("moe_route: there is no form for this device"),
    }
}

struct Choice {
    expert: u32,
    weight: f32,
}

fn choose(row: &[f32], k: usize, renormalise: bool) -> Vec<Choice> {
    let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = row.iter().map(|logit| (logit - highest).exp()).sum();
    let mut ranking: Vec<u32> = (0..row.len() as u32).collect();
    let order = |expert: u32| row[expert as usize] + 0.0; // both zeros are one
    ranking.sort_by(|&a, &b| order(b).total_cmp(&order(a)));
    ranking.truncate(k);
    let weight = |expert: u32| (row[expert as usize] - highest).exp() / sum;
    let kept: f32 = if renormalise { ranking.iter().map(|&expert| weight(expert)).sum() } else { 1.0 };
    ranking.into_iter().map(|expert| Choice { expert, weight: weight(expert) / kept }).collect()
}

#[cfg(feature = "cuda")]
fn on_gpu(gpu: &Gpu, logits: &Tensor, k: usize, renormalise: bool) -> Result<(Tensor, Tensor)> {
    const WARPS: usize = 8;
    let (tokens, experts) = logits.dims2()?;
    let (ids, weights) = (gpu.empty((tokens, k), DType::U32)?, gpu.empty((tokens, k), DType::F32)?);
    let launch =
        Launch::new(gpu, format!("moe_route_{}", suffix("moe_route", logits, &[])?)).grid(tokens.div_ceil(WARPS), 1, 1).block(32 * WARPS);
    let launch = launch.tensor(logits)?.arg(tokens as u32).arg(experts as u32).arg(k as u32).arg(u32::from(renormalise));
    launch.tensor(&ids)?.tensor(&weights)?.go()?;
    Ok((ids, weights))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, bits, noise};
    use candle_core::D;

    fn plain(logits: &Tensor, k: usize, renormalise: bool) -> Result<(Tensor, Tensor)> {
        let probabilities = candle_nn::ops::softmax_last_dim(logits)?;
        let ids = probabilities.arg_sort_last_dim(false)?.narrow(D::Minus1, 0, k)?.contiguous()?;
        let weights = probabilities.gather(&ids, D::Minus1)?;
        let weights = if renormalise { weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)? } else { weights };
        Ok((ids, weights))
    }

    /// Some rows with ties.
    fn logits(tokens: usize, experts: usize) -> Tensor {
        let logits = (noise((tokens, experts), 5) * 6.0).unwrap();
        let coarse = logits.round().unwrap();
        Tensor::cat(&[logits, coarse], 0).unwrap()
    }

    const CASES: [(usize, usize, usize); 6] = [(1, 1, 1), (3, 4, 2), (5, 31, 31), (9, 128, 8), (2, 33, 5), (300, 100, 10)];

    #[test]
    fn it_is_softmax_and_the_first_of_a_stable_sort() {
        for (tokens, experts, k) in CASES {
            for renormalise in [false, true] {
                let logits = logits(tokens, experts);
                let (ids, weights) = moe_route(&logits, k, renormalise).unwrap();
                let (plain_ids, plain_weights) = plain(&logits, k, renormalise).unwrap();
                assert_eq!(ids.to_vec2::<u32>().unwrap(), plain_ids.to_vec2::<u32>().unwrap(), "{k} of {experts}");
                assert_close(&weights, &plain_weights, 1e-6);
                let last = logits.narrow(0, 2 * tokens - 1, 1).unwrap();
                let alone = moe_route(&last, k, renormalise).unwrap().1;
                assert_eq!(bits(&weights.narrow(0, 2 * tokens - 1, 1).unwrap()), bits(&alone));
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let cases =
            [(noise((2, 3), 1), 4, "moe_route: 4 of 3 experts cannot be chosen"), (noise(3, 1), 1, "moe_route: logits must be [T, E]")];
        for (logits, k, expected) in cases {
            let error = moe_route(&logits, k, true).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
