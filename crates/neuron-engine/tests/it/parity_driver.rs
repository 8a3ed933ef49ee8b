//! Drives a causal model by hand: sequences laid end to end, block tables that are neither in order nor contiguous.

use std::path::Path;

use candle_core::{Device, Tensor};
use neuron_engine::cache::kv_cache::{BLOCK_SIZE, LayerCaches};
use neuron_engine::device::collective::{Collective, Shard, Solo};
use neuron_engine::models::config::ModelConfig;
use neuron_engine::models::registry::{self, Model};
use neuron_engine::models::{CausalLm, ModelInput, Visual};
use neuron_engine::weights::{Precision, Weights};
use neuron_kernels::{PagedBatch, PagedTables};
use std::sync::Arc;

/// Blocks in the pool: enough for every test, odd so that any stride visits all of them.
const BLOCKS: u32 = 61;

/// A model with its cache and the sequences in it.
pub(crate) struct Driver {
    model: Box<dyn CausalLm>,
    device: Device,
    caches: LayerCaches,
    blocks_used: u32,
    pub(crate) lines: Vec<Line>,
}

/// One sequence.
pub(crate) struct Line {
    pub(crate) tokens: Vec<u32>,
    /// Rotary positions of the prompt; later tokens follow at their index plus `delta`.
    positions: Vec<[u32; 3]>,
    delta: i64,
    computed: usize,
    blocks: Vec<u32>,
}

impl Line {
    /// A text: positions are indices.
    pub(crate) fn text(tokens: &[u32]) -> Self {
        Self { tokens: tokens.to_vec(), positions: Vec::new(), delta: 0, computed: 0, blocks: Vec::new() }
    }

    /// A prompt with pictures: its positions `[3, N]`, and how far later positions lag behind the index.
    pub(crate) fn with_positions(tokens: &[u32], positions: &Tensor, delta: i64) -> Self {
        let rows = positions.to_dtype(candle_core::DType::U32).unwrap().to_vec2::<u32>().unwrap();
        let positions = (0..tokens.len()).map(|i| [rows[0][i], rows[1][i], rows[2][i]]).collect();
        Self { positions, delta, ..Self::text(tokens) }
    }

    fn position(&self, index: usize) -> [u32; 3] {
        let later = || [u32::try_from(index as i64 + self.delta).unwrap(); 3];
        self.positions.get(index).copied().unwrap_or_else(later)
    }
}

/// Which rows of a step to ask logits for.
#[derive(Clone, Copy)]
pub(crate) enum Rows<'a> {
    All,
    Only(&'a [u32]),
}

impl Driver {
    pub(crate) fn new(model: Box<dyn CausalLm>) -> Self {
        Self::on(model, Device::Cpu)
    }

    fn on(model: Box<dyn CausalLm>, device: Device) -> Self {
        let caches = LayerCaches::new(&model.cache_spec(), BLOCKS as usize, &device).unwrap();
        Self { model, device, caches, blocks_used: 0, lines: Vec::new() }
    }

    pub(crate) fn open(folder: &Path) -> Self {
        Self::new(causal(folder, Precision::CPU))
    }

    /// All of the model in one element type, on a GPU.
    #[cfg(feature = "cuda")]
    pub(crate) fn open_on(folder: &Path, dtype: candle_core::DType, device: &Device) -> Self {
        let precision = Precision { matrices: Some(dtype), activations: dtype };
        let (config, weights) = open_from(folder, precision, device);
        match registry::build(&config, &weights, Arc::new(Solo), Shard::WHOLE).unwrap() {
            Model::Causal(model) => Self::on(model, device.clone()),
            Model::Encoder(_) => panic!("`{}` is an encoder", folder.display()),
        }
    }

    /// Adds a sequence and says where it is.
    pub(crate) fn add(&mut self, line: Line) -> usize {
        self.lines.push(line);
        self.lines.len() - 1
    }

    /// Computes the next `len` tokens of each sequence named, all in one step: logits `[R, V]`.
    pub(crate) fn step(&mut self, chunks: &[(usize, usize)], rows: Rows, visual: Option<Visual>) -> Tensor {
        let mut ids = Vec::new();
        let mut positions: [Vec<u32>; 3] = Default::default();
        let mut paged = PagedBatch { block_size: BLOCK_SIZE, ..PagedBatch::default() };
        for &(at, len) in chunks {
            self.reserve(at, len);
            let line = &mut self.lines[at];
            for index in line.computed..line.computed + len {
                ids.push(line.tokens[index]);
                line.position(index).into_iter().zip(&mut positions).for_each(|(position, row)| row.push(position));
                paged.slots.push(line.blocks[index / BLOCK_SIZE] * BLOCK_SIZE as u32 + (index % BLOCK_SIZE) as u32);
            }
            line.computed += len;
            paged.query_lens.push(len);
            paged.context_lens.push(line.computed);
            paged.block_tables.push(line.blocks.clone().into());
        }
        let logit_rows = match rows {
            Rows::All => (0..ids.len() as u32).collect(),
            Rows::Only(rows) => rows.to_vec(),
        };
        let tokens = ids.len();
        let device = &self.device;
        if !device.is_cpu() {
            paged.tables = Some(PagedTables::upload(&paged, device).unwrap());
        }
        let input = ModelInput {
            ids: Tensor::new(ids, device).unwrap(),
            positions: Tensor::from_vec(positions.concat(), (3, tokens), device).unwrap(),
            paged,
            logit_rows: Some(Tensor::new(logit_rows, device).unwrap()),
            visual: visual.map(|visual| on(&visual, self.caches.layers[0].k.dtype(), device)),
        };
        self.model.forward(&input, &self.caches).unwrap().to_device(&Device::Cpu).unwrap()
    }

    /// The rest of the prompt in one step: logits of all its rows.
    pub(crate) fn prefill(&mut self, at: usize) -> Tensor {
        let len = self.lines[at].tokens.len() - self.lines[at].computed;
        self.step(&[(at, len)], Rows::All, None)
    }

    /// Appends the likeliest token after `logits`' last row, `count` times; gives the logits that chose the last one.
    pub(crate) fn greedy(&mut self, at: usize, logits: &Tensor, count: usize) -> Vec<f32> {
        let mut row = last_row(logits);
        for left in (0..count).rev() {
            self.lines[at].tokens.push(argmax(&row));
            if left > 0 {
                row = last_row(&self.prefill(at));
            }
        }
        row
    }

    /// Takes blocks from all over the pool.
    fn reserve(&mut self, at: usize, len: usize) {
        let line = &mut self.lines[at];
        while line.blocks.len() * BLOCK_SIZE < line.computed + len {
            assert!(self.blocks_used < BLOCKS, "the test needs a larger pool");
            line.blocks.push(self.blocks_used * 23 % BLOCKS);
            self.blocks_used += 1;
        }
    }
}

/// The whole model on one device.
pub(crate) fn causal(folder: &Path, precision: Precision) -> Box<dyn CausalLm> {
    causal_rank(folder, precision, Arc::new(Solo), Shard::WHOLE)
}

/// One rank of the model.
pub(crate) fn causal_rank(folder: &Path, precision: Precision, comm: Arc<dyn Collective>, shard: Shard) -> Box<dyn CausalLm> {
    let (config, weights) = open(folder, precision);
    match registry::build(&config, &weights, comm, shard).unwrap() {
        Model::Causal(model) => model,
        Model::Encoder(_) => panic!("`{}` is an encoder", folder.display()),
    }
}

/// The features where the model is, in its type.
fn on(visual: &Visual, dtype: candle_core::DType, device: &Device) -> Visual {
    let there = |x: &Tensor| x.to_dtype(dtype).unwrap().to_device(device).unwrap();
    Visual {
        rows: visual.rows.to_device(device).unwrap(),
        features: there(&visual.features),
        deepstack: visual.deepstack.iter().map(there).collect(),
    }
}

/// A checkpoint's configuration and weights.
pub(crate) fn open(folder: &Path, precision: Precision) -> (ModelConfig, Weights) {
    open_from(folder, precision, &Device::Cpu)
}

/// The same, with the weights on any device.
pub(crate) fn open_from(folder: &Path, precision: Precision, device: &Device) -> (ModelConfig, Weights) {
    let config = registry::load_config(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let weights = Weights::open(folder, device, precision).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    (config, weights)
}

/// The last row of `[R, V]`.
pub(crate) fn last_row(logits: &Tensor) -> Vec<f32> {
    logits.get(logits.dim(0).unwrap() - 1).unwrap().to_vec1().unwrap()
}

/// Fails unless every number of `a` is within `tolerance` of its counterpart in `b`.
pub(crate) fn assert_close(a: &Tensor, b: &Tensor, tolerance: f32, what: &str) {
    assert_eq!(a.dims(), b.dims(), "{what}");
    let (a, b) = (flat(a), flat(b));
    let worst = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0f32, |worst, d| if d.is_nan() { f32::INFINITY } else { worst.max(d) });
    assert!(worst <= tolerance, "{what}: off by {worst:e}, tolerance {tolerance:e}");
}

/// Fails unless the two are the same bits.
pub(crate) fn assert_same(a: &Tensor, b: &Tensor, what: &str) {
    assert_eq!(a.dims(), b.dims(), "{what}");
    let bits = |x: &Tensor| flat(x).into_iter().map(f32::to_bits).collect::<Vec<_>>();
    assert!(bits(a) == bits(b), "{what}: not the same bits");
}

fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_dtype(candle_core::DType::F32).unwrap().to_vec1().unwrap()
}

fn argmax(row: &[f32]) -> u32 {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32
}
