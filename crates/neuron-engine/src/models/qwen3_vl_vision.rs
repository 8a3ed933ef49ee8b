//! The eyes of Qwen3-VL (arXiv:2511.21631; transformers' `Qwen3VLVisionModel`): patches in, one row per merged patch out.
//!
//! P patches of all pictures lie end to end in merge order, so the `merge x merge` patches of one token are neighbours.

use std::iter::once;

use candle_core::{DType, Device, Result, Tensor};
use neuron_kernels::{gelu_erf, gelu_tanh, rotary, segment_attention};

use super::VisionTower;
use super::config::VisionConfig;
use super::config::fields::Fields;
use crate::error::LoadError;
use crate::image::processor::merge_order;
use crate::image::{Grid, ImageFeatures};
use crate::layers::layer_norm::LayerNorm;
use crate::layers::linear::Linear;
use crate::weights::Weights;

type Loaded<T> = std::result::Result<T, LoadError>;

/// Of every norm in the tower; not in the configuration.
const NORM_EPS: f32 = 1e-6;
/// Base of the tower's rotary frequencies; not in the configuration.
const ROPE_THETA: f32 = 10_000.0;

/// Departures from the training, for comparison. Each makes the answers about places worse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VisionSwitches {
    /// The position table is read as its first P rows in order, instead of being stretched over the picture.
    pub legacy_positions: bool,
    /// No rotary in the tower.
    pub legacy_rope: bool,
}

/// The sizes of the tower, from `vision_config`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    depth: usize,
    hidden_size: usize, // Hv
    num_heads: usize,
    intermediate_size: usize,
    patch: [usize; 4], // channels, temporal_patch_size, patch_size, patch_size
    merge: usize,
    out_hidden_size: usize,
    table_side: usize, // S: the table has S x S rows
    deepstack: Vec<usize>,
}

impl Config {
    fn read(fields: &Fields) -> Loaded<Self> {
        let activation = fields.text("hidden_act")?;
        if activation != "gelu_pytorch_tanh" {
            return Err(fields.unsupported("hidden_act", activation, "only `gelu_pytorch_tanh` can be served"));
        }
        let (patch, temporal) = (fields.size("patch_size")?, fields.size("temporal_patch_size")?);
        let rows = fields.size("num_position_embeddings")?;
        let config = Self {
            depth: fields.size("depth")?,
            hidden_size: fields.size("hidden_size")?,
            num_heads: fields.size("num_heads")?,
            intermediate_size: fields.size("intermediate_size")?,
            patch: [fields.size_or("in_channels", 3)?, temporal, patch, patch],
            merge: fields.size("spatial_merge_size")?,
            out_hidden_size: fields.size("out_hidden_size")?,
            table_side: rows.isqrt(),
            deepstack: fields.optional_counts("deepstack_visual_indexes")?.unwrap_or_default(),
        };
        if config.table_side * config.table_side != rows {
            return Err(fields.error("num_position_embeddings", format!("must be a square number, but is {rows}")));
        }
        if !config.hidden_size.is_multiple_of(4 * config.num_heads) {
            let what = format!("must be a multiple of 4 num_heads, but is {} with {} heads", config.hidden_size, config.num_heads);
            return Err(fields.error("hidden_size", what));
        }
        match config.deepstack.iter().find(|&&block| block >= config.depth) {
            Some(block) => Err(fields.error("deepstack_visual_indexes", format!("names block {block} of {}", config.depth))),
            None => Ok(config),
        }
    }

    fn head_dim(&self) -> usize {
        self.hidden_size / self.num_heads
    }
}

/// What every block of one call shares.
struct Step {
    rope: Option<(Tensor, Tensor)>, // cos, sin: [P, D/2]
    segments: Vec<usize>,           // patches of each picture
}

#[derive(Debug)]
struct Attention {
    qkv: Linear,
    proj: Linear,
    heads: usize,
}

impl Attention {
    fn load(config: &Config, weights: &Weights) -> Loaded<Self> {
        let hidden = config.hidden_size;
        Ok(Self {
            qkv: Linear::load(&weights.pp("qkv"), 3 * hidden, hidden, true)?,
            proj: Linear::load(&weights.pp("proj"), hidden, hidden, true)?,
            heads: config.num_heads,
        })
    }

    /// `[P, Hv]` to `[P, Hv]`: every patch looks at all patches of its picture.
    fn forward(&self, x: &Tensor, step: &Step) -> Result<Tensor> {
        let (patches, hidden) = x.dims2()?;
        let dim = hidden / self.heads;
        let qkv = self.qkv.forward(x)?.reshape((patches, 3, self.heads, dim))?;
        let part = |i: usize| qkv.narrow(1, i, 1)?.squeeze(1)?.contiguous(); // [P, heads, D]
        let turn = |x: Tensor| match &step.rope {
            Some((cos, sin)) => rotary(&x, cos, sin),
            None => Ok(x),
        };
        let (q, k, v) = (turn(part(0)?)?, turn(part(1)?)?, part(2)?);
        let mixed = segment_attention(&q, &k, &v, &step.segments, (dim as f32).powf(-0.5))?;
        self.proj.forward(&mixed.reshape((patches, hidden))?)
    }
}

#[derive(Debug)]
struct Mlp {
    linear_fc1: Linear,
    linear_fc2: Linear,
}

impl Mlp {
    fn load(config: &Config, weights: &Weights) -> Loaded<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            linear_fc1: Linear::load(&weights.pp("linear_fc1"), inner, hidden, true)?,
            linear_fc2: Linear::load(&weights.pp("linear_fc2"), hidden, inner, true)?,
        })
    }

    /// `[P, Hv]` to `[P, Hv]`
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.linear_fc2.forward(&gelu_tanh(&self.linear_fc1.forward(x)?)?)
    }
}

#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    attn: Attention,
    norm2: LayerNorm,
    mlp: Mlp,
}

impl Block {
    fn load(config: &Config, weights: &Weights) -> Loaded<Self> {
        let norm = |name: &str| LayerNorm::load(&weights.pp(name), config.hidden_size, NORM_EPS);
        Ok(Self {
            norm1: norm("norm1")?,
            attn: Attention::load(config, &weights.pp("attn"))?,
            norm2: norm("norm2")?,
            mlp: Mlp::load(config, &weights.pp("mlp"))?,
        })
    }

    /// `[P, Hv]` to `[P, Hv]`: x + attention, then + feed-forward.
    fn forward(&self, x: &Tensor, step: &Step) -> Result<Tensor> {
        let x = (x + self.attn.forward(&self.norm1.forward(x)?, step)?)?;
        &x + self.mlp.forward(&self.norm2.forward(&x)?)?
    }
}

/// Where a merger's norm stands: over each patch, or over the patches of a token together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NormOver {
    Patch,
    Token,
}

#[derive(Debug)]
struct PatchMerger {
    norm: LayerNorm,
    norm_over: NormOver,
    linear_fc1: Linear,
    linear_fc2: Linear,
    width: usize, // merge² Hv
}

impl PatchMerger {
    fn load(config: &Config, norm_over: NormOver, weights: &Weights) -> Loaded<Self> {
        let width = config.merge * config.merge * config.hidden_size;
        let norm_width = if norm_over == NormOver::Patch { config.hidden_size } else { width };
        Ok(Self {
            norm: LayerNorm::load(&weights.pp("norm"), norm_width, NORM_EPS)?,
            norm_over,
            linear_fc1: Linear::load(&weights.pp("linear_fc1"), width, width, true)?,
            linear_fc2: Linear::load(&weights.pp("linear_fc2"), config.out_hidden_size, width, true)?,
            width,
        })
    }

    /// `[P, Hv]` to `[P / merge², H]`
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let tokens = |x: &Tensor| x.reshape((x.elem_count() / self.width, self.width));
        let x = match self.norm_over {
            NormOver::Patch => tokens(&self.norm.forward(x)?)?,
            NormOver::Token => self.norm.forward(&tokens(x)?)?,
        };
        self.linear_fc2.forward(&gelu_erf(&self.linear_fc1.forward(&x)?)?)
    }
}

/// The whole tower. Each rank of a split model holds all of it.
#[derive(Debug)]
pub struct Model {
    config: Config,
    switches: VisionSwitches,
    patch_embed: Linear,
    pos_embed: Vec<f32>, // [S * S, Hv], as the model's dtype has it
    blocks: Vec<Block>,
    merger: PatchMerger,
    deepstack_mergers: Vec<PatchMerger>,
    device: Device,
    dtype: DType,
}

/// What the tower computes on the way, for those who compare it with the reference.
#[derive(Debug)]
pub struct Trace {
    /// After the patch embedding, `[P, Hv]`.
    pub patch_embed: Tensor,
    /// What is added to it, `[P, Hv]`.
    pub pos_embed: Tensor,
    /// cos and sin of the rotary angles, `[P, D/2]`.
    pub rope: Option<(Tensor, Tensor)>,
    /// After each block, `[P, Hv]`.
    pub blocks: Vec<Tensor>,
    /// The result.
    pub features: ImageFeatures,
}

impl Model {
    /// Reads the tower's weights (`model.visual`).
    pub fn load(config: &VisionConfig, weights: &Weights, switches: VisionSwitches) -> Loaded<Self> {
        let config = Config::read(&config.tower)?;
        let merger = |norm_over, weights: Weights| PatchMerger::load(&config, norm_over, &weights);
        let (blocks, mergers) = (weights.pp("blocks"), weights.pp("deepstack_merger_list"));
        Ok(Self {
            patch_embed: Linear::over_windows(&weights.pp("patch_embed.proj"), config.hidden_size, &config.patch)?,
            pos_embed: Self::pos_embed(&config, &weights.pp("pos_embed"))?,
            blocks: (0..config.depth).map(|i| Block::load(&config, &blocks.pp(i))).collect::<Loaded<_>>()?,
            merger: merger(NormOver::Patch, weights.pp("merger"))?,
            deepstack_mergers: (0..config.deepstack.len()).map(|k| merger(NormOver::Token, mergers.pp(k))).collect::<Loaded<_>>()?,
            device: weights.device().clone(),
            dtype: weights.activations(),
            switches,
            config,
        })
    }

    fn pos_embed(config: &Config, weights: &Weights) -> Loaded<Vec<f32>> {
        let rows = config.table_side * config.table_side;
        let table = weights.get(&[rows, config.hidden_size], "weight")?;
        Ok(table.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }

    /// The features, and all that leads to them.
    pub fn trace(&self, pixels: &Tensor, grids: &[Grid]) -> Result<Trace> {
        let step = Step { rope: self.rope(grids)?, segments: grids.iter().map(|grid| grid.patches()).collect() };
        let patch_embed = self.patch_embed.forward(&pixels.to_dtype(self.dtype)?)?;
        let pos_embed = self.positions(grids)?;
        let mut x = (&patch_embed + &pos_embed)?;
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            x = block.forward(&x, &step)?;
            blocks.push(x.clone());
        }
        let taps = self.config.deepstack.iter().zip(&self.deepstack_mergers);
        let deepstack = taps.map(|(&block, merger)| merger.forward(&blocks[block])).collect::<Result<_>>()?;
        let features = ImageFeatures { merged: self.merger.forward(&x)?, deepstack };
        Ok(Trace { patch_embed, pos_embed, rope: step.rope, blocks, features })
    }

    /// The position table stretched over each picture, `[P, Hv]`.
    fn positions(&self, grids: &[Grid]) -> Result<Tensor> {
        let patches: usize = grids.iter().map(|grid| grid.patches()).sum();
        let mut rows = Vec::with_capacity(patches * self.config.hidden_size);
        for &grid in grids {
            if self.switches.legacy_positions {
                let all = self.config.table_side * self.config.table_side;
                (0..grid.patches()).for_each(|i| rows.extend_from_slice(self.table_row(i % all)));
            } else {
                self.interpolate(grid, &mut rows);
            }
        }
        Tensor::from_vec(rows, (patches, self.config.hidden_size), &self.device)?.to_dtype(self.dtype)
    }

    fn table_row(&self, index: usize) -> &[f32] {
        let hidden = self.config.hidden_size;
        &self.pos_embed[index * hidden..(index + 1) * hidden]
    }

    /// Bilinear between the four nearest rows of the table, patch by patch in merge order.
    fn interpolate(&self, grid: Grid, rows: &mut Vec<f32>) {
        let side = self.config.table_side;
        let (ys, xs) = (axis(grid.h, side), axis(grid.w, side));
        for (row, column) in merge_order(grid, self.config.merge) {
            let (y, x) = (ys[row], xs[column]);
            let corner = |y: usize, x: usize| self.table_row(y * side + x);
            let corners = [corner(y.low, x.low), corner(y.low, x.high), corner(y.high, x.low), corner(y.high, x.high)];
            let weights = [
                (1.0 - y.fraction) * (1.0 - x.fraction),
                (1.0 - y.fraction) * x.fraction,
                y.fraction * (1.0 - x.fraction),
                y.fraction * x.fraction,
            ];
            let [a, b, c, d] = corners;
            rows.extend((0..a.len()).map(|i| a[i] * weights[0] + b[i] * weights[1] + c[i] * weights[2] + d[i] * weights[3]));
        }
    }

    /// Half of a head turns with the patch's row, half with its column; cos and sin, `[P, D/2]` each.
    fn rope(&self, grids: &[Grid]) -> Result<Option<(Tensor, Tensor)>> {
        if self.switches.legacy_rope {
            return Ok(None);
        }
        let quarter = self.config.head_dim() / 4;
        let frequencies: Vec<f32> = (0..quarter).map(|j| 1.0 / ROPE_THETA.powf((2 * j) as f32 / (2 * quarter) as f32)).collect();
        let places = grids.iter().flat_map(|&grid| merge_order(grid, self.config.merge));
        let angles: Vec<f32> = places
            .flat_map(|(row, column)| once(row).chain(once(column)))
            .flat_map(|place| frequencies.iter().map(move |frequency| place as f32 * frequency))
            .collect();
        let angles = Tensor::from_vec(angles, (grids.iter().map(|grid| grid.patches()).sum::<usize>(), 2 * quarter), &self.device)?;
        Ok(Some((angles.cos()?, angles.sin()?)))
    }
}

impl VisionTower for Model {
    fn encode(&self, pixels: &Tensor, grids: &[Grid]) -> Result<ImageFeatures> {
        Ok(self.trace(pixels, grids)?.features)
    }
}

/// Between which rows (or columns) of the table a patch falls.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Between {
    /// The one before.
    pub low: usize,
    /// The one after; the same at the end.
    pub high: usize,
    /// Share of the one after.
    pub fraction: f32,
}

/// `count` patches over `side` table rows, first on first and last on last: `torch.linspace(0, side - 1, count)` in its own
/// rounding, which counts up from the start in the first half and down from the end in the second.
pub fn axis(count: usize, side: usize) -> Vec<Between> {
    let last = (side - 1) as f32;
    let step = if count > 1 { last / (count - 1) as f32 } else { 0.0 };
    let coordinate = |i: usize| match i < count / 2 {
        true => i as f32 * step,
        false => (-step).mul_add((count - 1 - i) as f32, last),
    };
    let place = |i: usize| {
        let at = if count > 1 { coordinate(i) } else { 0.0 };
        let low = at as usize;
        Between { low, high: (low + 1).min(side - 1), fraction: at - low as f32 }
    };
    (0..count).map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_the_native_size_every_patch_has_its_own_row() {
        let places: Vec<_> = axis(48, 48).iter().map(|place| (place.low, place.fraction)).collect();
        let near = |(i, &(low, fraction)): (usize, &(usize, f32))| (low as f32 + fraction - i as f32).abs() < 1e-5;
        assert!(places.iter().enumerate().all(near), "{places:?}");
        assert_eq!(axis(1, 48), [Between { low: 0, high: 1, fraction: 0.0 }]);
        assert_eq!(axis(2, 48)[1], Between { low: 47, high: 47, fraction: 0.0 });
    }
}
