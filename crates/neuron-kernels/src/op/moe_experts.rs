//! The feed-forward experts of a mixture, each run over the rows that chose it.

use super::silu_mul::silu_mul_rows;
use crate::cpu::element::Element;
use crate::cpu::matmul::{Dims, matmul_nt};
use crate::cpu::view::{Floats, f32s, floats};
use crate::cpu::{PARALLEL_WORK_MIN, fill_rows};
#[cfg(feature = "cuda")]
use crate::cuda::{Gpu, Launch, suffix};
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Sums, per row, the chosen experts' outputs times their weights, in rising order of the experts.
///
/// `x` is `[T, H]`, `gate_up` is `[E, 2I, H]` (gate first), `down` is `[E, H, I]` (both f32, bf16 or f16), `ids` is `[T, k]` u32
/// and `weights` `[T, k]` f32; the result is `[T, H]`. A row has the same bits for any T.
///
/// # Errors
/// When the shapes do not fit together, an id is not below E, or a type is none of those.
pub fn moe_experts(x: &Tensor, gate_up: &Tensor, down: &Tensor, ids: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let fits = match (x.dims(), gate_up.dims(), down.dims(), ids.dims()) {
        (&[t, h], &[e, twice, gate_h], &[down_e, down_h, i], &[ids_t, _]) => {
            t == ids_t && h == gate_h && h == down_h && e == down_e && twice == 2 * i && ids.dims() == weights.dims()
        }
        _ => false,
    };
    if !fits {
        bail!(
            "moe_experts: x must be [T, H], gate_up [E, 2I, H], down [E, H, I], ids and weights [T, k], got {:?}, {:?}, {:?}, {:?} and {:?}",
            x.dims(),
            gate_up.dims(),
            down.dims(),
            ids.dims(),
            weights.dims()
        );
    }
    let (x, gate_up, down) = (x.contiguous()?, gate_up.contiguous()?, down.contiguous()?);
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(x.device())? {
        let layer = OnGpu { gpu: &gpu, x: &x, gate_up: &gate_up, down: &down, ids: &ids.contiguous()?, weights: &weights.contiguous()? };
        return layer.run();
    }
    x.apply_op3_no_bwd(&gate_up, &down, &MoeExperts { ids, weights })
}

/// As the kernels have them.
#[cfg(feature = "cuda")]
mod limits {
    pub(super) const CHOICES_MAX: usize = 32;
    pub(super) const EXPERTS_MAX: usize = 1024;
    /// Outputs of a block of `moe_down_gemv`.
    pub(super) const GEMV_OUTPUTS: usize = 4;
    /// Rows of the weights in a tile, half of them gates where there are any.
    pub(super) const TILE_WIDTH: usize = 128;
    pub(super) const TILE_THREADS: usize = 128;
    /// Bytes of a row of a tile in one stage.
    pub(super) const TILE_ROW_BYTES: usize = 128;
}

/// The operands of one call on a GPU, contiguous.
#[cfg(feature = "cuda")]
struct OnGpu<'a> {
    gpu: &'a Gpu,
    x: &'a Tensor,
    gate_up: &'a Tensor,
    down: &'a Tensor,
    ids: &'a Tensor,
    weights: &'a Tensor,
}

/// The sizes of one call. A pair is a token and one of its choices.
#[cfg(feature = "cuda")]
struct Sizes {
    tokens: usize,
    choices: usize,
    pairs: usize,
    experts: usize,
    hidden: usize,
    inner: usize,
}

#[cfg(feature = "cuda")]
impl OnGpu<'_> {
    fn run(&self) -> Result<Tensor> {
        let ((tokens, choices), (experts, hidden, inner)) = (self.ids.dims2()?, self.down.dims3()?);
        if self.ids.dtype() != DType::U32 || self.weights.dtype() != DType::F32 {
            bail!("moe_experts: ids must be u32 and weights f32, got {:?} and {:?}", self.ids.dtype(), self.weights.dtype());
        }
        if choices == 0 || choices > limits::CHOICES_MAX {
            bail!("moe_experts: on a GPU a token visits from 1 to {} experts, got {choices}", limits::CHOICES_MAX);
        }
        let suffix = suffix("moe_experts", self.x, &[self.gate_up, self.down])?;
        let sizes = Sizes { tokens, choices, pairs: tokens * choices, experts, hidden, inner };
        match sizes.tile_height(self.x.dtype()) {
            None => self.pair_by_pair(&sizes, suffix),
            Some(height) => self.in_tiles(&sizes, suffix, height),
        }
    }

    /// Each pair reads its expert's weights for itself.
    fn pair_by_pair(&self, sizes: &Sizes, suffix: &str) -> Result<Tensor> {
        const WARPS: usize = 8;
        let &Sizes { tokens, choices, pairs, experts, hidden, inner } = sizes;
        let gated = self.gpu.empty((pairs, inner), self.x.dtype())?;
        let launch = Launch::new(self.gpu, format!("moe_gated_gemv_{suffix}")).grid(pairs, inner.div_ceil(WARPS), 1).block(32 * WARPS);
        let launch = launch.tensor(self.x)?.tensor(self.gate_up)?.tensor(self.ids)?.arg(experts as u32).arg(choices as u32);
        launch.arg(hidden as u32).arg(inner as u32).tensor(&gated)?.go()?;
        let out = self.gpu.empty((tokens, hidden), self.x.dtype())?;
        let launch = Launch::new(self.gpu, format!("moe_down_gemv_{suffix}")).grid(tokens, hidden.div_ceil(limits::GEMV_OUTPUTS), 1);
        let launch = launch.block(32 * choices.min(WARPS)).tensor(&gated)?.tensor(self.down)?.tensor(self.ids)?.floats(self.weights)?;
        launch.arg(experts as u32).arg(choices as u32).arg(hidden as u32).arg(inner as u32).tensor(&out)?.go()?;
        Ok(out)
    }

    /// The pairs of one expert share its weights, as many at a time as a tile is high. Grids are as large as the worst choice needs:
    /// the host never learns which experts were chosen.
    fn in_tiles(&self, sizes: &Sizes, suffix: &str, height: usize) -> Result<Tensor> {
        let &Sizes { tokens, choices, pairs, experts, hidden, inner } = sizes;
        let tiles_max = pairs / height + pairs.min(experts);
        let (order, tiles) = (self.gpu.empty(pairs, DType::U32)?, self.gpu.empty((tiles_max, 4), DType::U32)?);
        let align = Launch::new(self.gpu, "moe_align").block(limits::EXPERTS_MAX).tensor(self.ids)?.arg(pairs as u32).arg(experts as u32);
        align.arg(height as u32).arg(tiles_max as u32).tensor(&order)?.tensor(&tiles)?.go()?;
        let stages = if height == LOW_TILE { 4 } else { 3 };
        let product = |name: &str, x: &Tensor, w: &Tensor, share: usize, outputs: usize, k: usize, width: usize| {
            let out = self.gpu.empty((pairs, outputs), self.x.dtype())?;
            let launch = Launch::new(self.gpu, format!("moe_{name}_{height}_{suffix}")).grid(outputs.div_ceil(width), tiles_max, 1);
            let launch = launch.block(limits::TILE_THREADS).shared(stages * (height + limits::TILE_WIDTH) * limits::TILE_ROW_BYTES);
            let launch = launch.tensor(x)?.tensor(w)?.tensor(&order)?.tensor(&tiles)?.arg(share as u32).arg(outputs as u32);
            launch.arg(k as u32).tensor(&out)?.go()?;
            Ok::<_, candle_core::Error>(out)
        };
        let gated = product("gated", self.x, self.gate_up, choices, inner, hidden, limits::TILE_WIDTH / 2)?;
        let parts = product("down", &gated, self.down, 1, hidden, inner, limits::TILE_WIDTH)?;
        let out = self.gpu.empty((tokens, hidden), self.x.dtype())?;
        let combine = Launch::new(self.gpu, format!("moe_combine_{suffix}")).grid(tokens, (hidden / 8).div_ceil(256), 1);
        let combine = combine.tensor(&parts)?.tensor(self.ids)?.floats(self.weights)?.arg(experts as u32).arg(choices as u32);
        combine.arg(hidden as u32).tensor(&out)?.go()?;
        Ok(out)
    }
}

/// The two heights of a tile: one that wastes little where few rows choose an expert, one that reads weights seldom.
#[cfg(feature = "cuda")]
const LOW_TILE: usize = 16;
#[cfg(feature = "cuda")]
const HIGH_TILE: usize = 64;

#[cfg(feature = "cuda")]
impl Sizes {
    /// How high the tiles should be; `None` where pair by pair is better, or the only form: tiles are of whole groups of eight
    /// sixteen-bit elements.
    fn tile_height(&self, dtype: DType) -> Option<usize> {
        const FEW_PAIRS: usize = 32;
        let fits =
            dtype != DType::F32 && self.hidden.is_multiple_of(8) && self.inner.is_multiple_of(8) && self.experts <= limits::EXPERTS_MAX;
        let height = if self.pairs <= LOW_TILE * self.experts { LOW_TILE } else { HIGH_TILE };
        (fits && self.pairs > FEW_PAIRS).then_some(height)
    }
}

/// The router's choice rides along: candle's ops have three operands.
struct MoeExperts<'a> {
    ids: &'a Tensor,
    weights: &'a Tensor,
}

impl CustomOp3 for MoeExperts<'_> {
    fn name(&self) -> &'static str {
        "moe_experts"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gate_up: &CpuStorage,
        gate_up_layout: &Layout,
        down: &CpuStorage,
        down_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, hidden) = x_layout.shape().dims2()?;
        let (experts, _, inner) = down_layout.shape().dims3()?;
        let routes = Routes::new(self.ids, self.weights, experts)?;
        let x = f32s("moe_experts", "x", x, x_layout)?;
        let gate_up = floats("moe_experts", "gate_up", gate_up, gate_up_layout)?;
        let down = floats("moe_experts", "down", down, down_layout)?;
        let mut out = vec![0.0; x.len()];
        match (gate_up, down) {
            (Floats::F32(gate_up), Floats::F32(down)) => Experts { gate_up, down, hidden, inner }.run(x, &routes, &mut out),
            (Floats::Bf16(gate_up), Floats::Bf16(down)) => Experts { gate_up, down, hidden, inner }.run(x, &routes, &mut out),
            (Floats::F16(gate_up), Floats::F16(down)) => Experts { gate_up, down, hidden, inner }.run(x, &routes, &mut out),
            _ => bail!("moe_experts: gate_up and down must be of one type"),
        }
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

/// One choice of one row.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Route {
    expert: u32,
    row: usize,
    choice: usize,
}

/// Which rows go to which experts.
struct Routes {
    /// Sorted by expert, then row.
    routes: Vec<Route>,
    /// `[T, k]`.
    weights: Vec<f32>,
    k: usize,
}

impl Routes {
    fn new(ids: &Tensor, weights: &Tensor, experts: usize) -> Result<Self> {
        let k = ids.dim(1)?;
        if ids.dtype() != DType::U32 || weights.dtype() != DType::F32 {
            bail!("moe_experts: ids must be u32 and weights f32, got {:?} and {:?}", ids.dtype(), weights.dtype());
        }
        let ids: Vec<u32> = ids.flatten_all()?.to_vec1()?;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= experts) {
            bail!("moe_experts: expert {id} is not among the {experts}");
        }
        let mut routes: Vec<Route> = ids.iter().enumerate().map(|(i, &expert)| Route { expert, row: i / k, choice: i % k }).collect();
        routes.sort_unstable();
        Ok(Self { routes, weights: weights.flatten_all()?.to_vec1()?, k })
    }

    /// The outputs of each row's choices, by expert: their places in `routes` and their weights, `[T][k]`.
    fn by_row(&self) -> Vec<(usize, f32)> {
        let mut places = vec![(0, 0.0); self.routes.len()];
        let mut filled = vec![0; self.routes.len().checked_div(self.k).unwrap_or(0)];
        for (place, route) in self.routes.iter().enumerate() {
            places[route.row * self.k + filled[route.row]] = (place, self.weights[route.row * self.k + route.choice]);
            filled[route.row] += 1;
        }
        places
    }
}

struct Experts<'a, T> {
    gate_up: &'a [T],
    down: &'a [T],
    hidden: usize,
    inner: usize,
}

impl<T: Element> Experts<'_, T> {
    fn run(&self, x: &[f32], routes: &Routes, out: &mut [f32]) {
        if out.is_empty() || routes.k == 0 {
            return;
        }
        let hidden = self.hidden;
        let mut outputs = vec![0.0; routes.routes.len() * hidden];
        let mut rest = outputs.as_mut_slice();
        let mut tasks = Vec::new();
        for routes in routes.routes.chunk_by(|a, b| a.expert == b.expert) {
            let (head, tail) = rest.split_at_mut(routes.len() * hidden);
            tasks.push((routes, head));
            rest = tail;
        }
        let work = 3 * routes.routes.len() * hidden * self.inner;
        if work < PARALLEL_WORK_MIN {
            tasks.into_iter().for_each(|(routes, out)| self.expert(x, routes, out));
        } else {
            tasks.into_par_iter().with_max_len(1).for_each(|(routes, out)| self.expert(x, routes, out));
        }
        let by_row = routes.by_row();
        fill_rows(out, hidden, routes.k * hidden, |row, out| {
            for &(place, weight) in &by_row[row * routes.k..(row + 1) * routes.k] {
                let output = &outputs[place * hidden..(place + 1) * hidden];
                out.iter_mut().zip(output).for_each(|(out, y)| *out += weight * y);
            }
        });
    }

    /// The feed-forward of one expert over the rows that chose it.
    fn expert(&self, x: &[f32], routes: &[Route], out: &mut [f32]) {
        let (rows, hidden, inner) = (routes.len(), self.hidden, self.inner);
        let expert = routes[0].expert as usize;
        let gate_up = &self.gate_up[expert * 2 * inner * hidden..][..2 * inner * hidden];
        let down = &self.down[expert * hidden * inner..][..hidden * inner];
        let x: Vec<f32> = routes.iter().flat_map(|route| &x[route.row * hidden..(route.row + 1) * hidden]).copied().collect();
        let mut gated = vec![0.0; rows * 2 * inner];
        matmul_nt(&x, gate_up, Dims { rows, outputs: 2 * inner, k: hidden }, &mut gated);
        let mut activated = vec![0.0; rows * inner];
        silu_mul_rows(&gated, inner, &mut activated);
        matmul_nt(&activated, down, Dims { rows, outputs: hidden, k: inner }, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, bits, noise};
    use crate::{linear, silu_mul};
    use candle_core::{Device, IndexOp};

    struct Layer {
        gate_up: Tensor,
        down: Tensor,
    }

    fn layer(experts: usize, hidden: usize, inner: usize, dtype: DType) -> Layer {
        let gate_up = noise((experts, 2 * inner, hidden), 2).to_dtype(dtype).unwrap();
        Layer { gate_up, down: noise((experts, hidden, inner), 3).to_dtype(dtype).unwrap() }
    }

    /// Distinct experts per row, in no order.
    fn router(rows: usize, k: usize, experts: usize) -> (Tensor, Tensor) {
        let ids: Vec<u32> = (0..rows * k).map(|i| ((i / k * 5 + (i % k) * 7) % experts) as u32).collect();
        (Tensor::from_vec(ids, (rows, k), &Device::Cpu).unwrap(), noise((rows, k), 4))
    }

    fn plain(x: &Tensor, layer: &Layer, ids: &Tensor, weights: &Tensor) -> Result<Tensor> {
        let rows = (0..x.dim(0)?).map(|row| {
            let mut choices: Vec<(u32, f32)> = ids.i(row)?.to_vec1()?.into_iter().zip(weights.i(row)?.to_vec1::<f32>()?).collect();
            choices.sort_by_key(|choice| choice.0);
            let x = x.narrow(0, row, 1)?;
            choices.into_iter().try_fold(x.zeros_like()?, |sum, (expert, weight)| {
                let inner = silu_mul(&linear(&x, &layer.gate_up.i(expert as usize)?, None)?)?;
                sum + (linear(&inner, &layer.down.i(expert as usize)?, None)? * f64::from(weight))?
            })
        });
        Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)
    }

    #[test]
    fn it_is_the_weighted_sum_of_the_experts_for_any_company() {
        for (rows, k, experts, hidden, inner) in [(1, 1, 1, 3, 2), (1, 8, 16, 64, 24), (7, 2, 8, 33, 17), (40, 4, 9, 48, 40)] {
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let (layer, x) = (layer(experts, hidden, inner, dtype), noise((rows, hidden), 1));
                let (ids, weights) = router(rows, k, experts);
                let got = moe_experts(&x, &layer.gate_up, &layer.down, &ids, &weights).unwrap();
                assert_close(&got, &plain(&x, &layer, &ids, &weights).unwrap(), 1e-5);
                let row = |t: &Tensor, i| t.narrow(0, i, 1).unwrap();
                for i in 0..rows {
                    let alone = moe_experts(&row(&x, i), &layer.gate_up, &layer.down, &row(&ids, i), &row(&weights, i)).unwrap();
                    assert_eq!(bits(&row(&got, i)), bits(&alone), "row {i} of {rows}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let (layer, x) = (layer(4, 6, 3, DType::F32), noise((2, 6), 1));
        let (ids, weights) = router(2, 2, 9);
        let error = moe_experts(&x, &layer.gate_up, &layer.down, &ids, &weights).unwrap_err().to_string();
        assert!(error.starts_with("moe_experts: expert 7 is not among the 4"), "{error}");
        let error = moe_experts(&noise((3, 6), 1), &layer.gate_up, &layer.down, &ids, &weights).unwrap_err().to_string();
        assert!(error.starts_with("moe_experts: x must be [T, H], gate_up [E, 2I, H], down [E, H, I]"), "{error}");
    }
}
