//! One rank of one model on its device thread: it turns a step's plain data into tensors, runs the model, and samples.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use crate::batch::{Batch, BatchSequence, Sample};
use crate::cache::kv_cache::LayerCaches;
use crate::device::collective::{Collective, Shard};
use crate::device::command::{ShardLoad, ShardReport, StepInput, StepOutput};
use crate::error::LoadError;
use crate::image::{FeatureCache, ImageFeatures, PreparedImage};
use crate::models::registry::{Model, build, build_vision};
use crate::models::{ModelInput, VisionTower, Visual};
use crate::sampler::{SampleRow, Sampled, sample};
use crate::sequence::SequenceId;
use crate::weights::Weights;

/// Bytes of image features kept per model.
const FEATURE_BYTES_MAX: usize = 256 << 20;

/// A model, its KV cache, and its place among the ranks.
pub struct ModelRunner {
    model: Model,
    vision: Option<Box<dyn VisionTower>>,
    caches: Option<LayerCaches>,
    features: FeatureCache,
    comm: Arc<dyn Collective>,
    shard: Shard,
    device: Device,
    weight_bytes: u64,
}

impl ModelRunner {
    /// Reads this rank's part of the checkpoint. The KV cache comes later: its size depends on what is left.
    pub fn load(load: ShardLoad, device: Device) -> std::result::Result<Self, LoadError> {
        let weights = Weights::open(&load.folder, &device, load.precision)?;
        let model = build(&load.config, &weights, load.comm.clone(), load.shard)?;
        let vision = build_vision(&load.config, &weights, load.vision)?;
        let features = FeatureCache::new(FEATURE_BYTES_MAX);
        Ok(Self { model, vision, caches: None, features, comm: load.comm, shard: load.shard, weight_bytes: weights.loaded_bytes(), device })
    }

    /// What was loaded.
    pub fn report(&self) -> ShardReport {
        let cache = match &self.model {
            Model::Causal(lm) => Some(lm.cache_spec()),
            Model::Encoder(_) => None,
        };
        ShardReport { cache, weight_bytes: self.weight_bytes }
    }

    /// Allocates the KV cache.
    pub fn reserve(&mut self, blocks: usize) -> Result<()> {
        if let Model::Causal(lm) = &self.model {
            self.caches = Some(LayerCaches::new(&lm.cache_spec(), blocks, &self.device)?);
        }
        Ok(())
    }

    /// Tells the other ranks that this one's step failed.
    pub fn abort(&self) {
        self.comm.abort();
    }

    /// One step of a decoder.
    pub fn execute(&mut self, step: &StepInput) -> Result<StepOutput> {
        let Self { model: Model::Causal(lm), vision, caches: Some(caches), features, device, .. } = self else {
            bail!("this model has no KV cache: it is an encoder, or `reserve` was not called")
        };
        let visual = visual(&step.batch, &step.images, vision.as_deref(), features, device)?;
        let logits = lm.forward(&input(&step.batch, visual, device)?, caches)?;
        if self.shard.rank == 0 { draw(&step.batch, &logits) } else { Ok(StepOutput::default()) }
    }

    /// Token sequences to vectors, one each.
    pub fn encode(&self, inputs: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        let Model::Encoder(encoder) = &self.model else { bail!("this model is a decoder: it has no embeddings") };
        let lens: Vec<usize> = inputs.iter().map(Vec::len).collect();
        let ids = Tensor::from_vec(inputs.concat(), lens.iter().sum::<usize>(), &self.device)?;
        encoder.encode(&ids, &lens)?.to_vec2()
    }
}

fn input(batch: &Batch, visual: Option<Visual>, device: &Device) -> Result<ModelInput> {
    let tokens = batch.tokens();
    let rows = batch.logit_rows();
    let count = rows.len();
    Ok(ModelInput {
        ids: Tensor::from_vec(batch.ids(), tokens, device)?,
        positions: Tensor::from_vec(batch.positions(), (3, tokens), device)?,
        paged: batch.paged(),
        logit_rows: Tensor::from_vec(rows, count, device)?,
        visual,
    })
}

/// The features of the image tokens in this step, from the cache or freshly computed.
fn visual(
    batch: &Batch,
    images: &[Arc<PreparedImage>],
    vision: Option<&dyn VisionTower>,
    cache: &mut FeatureCache,
    device: &Device,
) -> Result<Option<Visual>> {
    let parts = batch.image_parts();
    if parts.is_empty() {
        return Ok(None);
    }
    let Some(tower) = vision else { bail!("this model has no vision tower") };
    let known = look(images, tower, cache, device)?;
    let mut rows: Vec<u32> = Vec::new();
    let mut features = Vec::with_capacity(parts.len());
    for (row, part) in parts {
        let Some(found) = known.get(&part.image.hash) else { bail!("a picture of this step did not come with it") };
        features.push(found.rows(part.offset, part.len)?);
        rows.extend((row..row + part.len).map(|row| row as u32));
    }
    let ImageFeatures { merged, deepstack } = ImageFeatures::cat(&features)?;
    let count = rows.len();
    Ok(Some(Visual { rows: Tensor::from_vec(rows, count, device)?, features: merged, deepstack }))
}

/// Runs the tower over the pictures that the cache does not know, all at once.
fn look(
    images: &[Arc<PreparedImage>],
    tower: &dyn VisionTower,
    cache: &mut FeatureCache,
    device: &Device,
) -> Result<HashMap<u64, ImageFeatures>> {
    let mut known = HashMap::new();
    let mut unknown: Vec<&PreparedImage> = Vec::new();
    for image in images {
        match cache.get(image.hash) {
            Some(features) => drop(known.insert(image.hash, features)),
            None if unknown.iter().any(|other| other.hash == image.hash) => {}
            None => unknown.push(image),
        }
    }
    if unknown.is_empty() {
        return Ok(known);
    }
    let grids: Vec<_> = unknown.iter().map(|image| image.grid).collect();
    let patches: usize = grids.iter().map(|grid| grid.patches()).sum();
    let pixels: Vec<f32> = unknown.iter().flat_map(|image| image.pixel_values()).collect();
    let width = pixels.len() / patches;
    let all = tower.encode(&Tensor::from_vec(pixels, (patches, width), device)?, &grids)?;
    let mut first = 0;
    for image in unknown {
        let features = all.rows(first, image.tokens())?;
        first += image.tokens();
        cache.put(image.hash, features.clone());
        known.insert(image.hash, features);
    }
    Ok(known)
}

/// One token for each sequence that samples; `logits` has their rows in the batch's order.
fn draw(batch: &Batch, logits: &Tensor) -> Result<StepOutput> {
    let asked: Vec<(&BatchSequence, &Sample)> =
        batch.sequences.iter().filter_map(|sequence| Some((sequence, sequence.sample.as_ref()?))).collect();
    let vocabulary = logits.dim(1)?;
    let mut rows = logits.flatten_all()?.to_vec1::<f32>()?;
    let sampled = rows.par_chunks_mut(vocabulary).zip(asked).map(|(row, (sequence, asked))| draw_one(row, sequence.id, asked));
    Ok(StepOutput { sampled: sampled.collect::<Result<_>>()? })
}

fn draw_one(row: &mut [f32], id: SequenceId, asked: &Sample) -> Result<(SequenceId, Sampled)> {
    let Sample { params, position, prompt, answer, logprobs } = asked;
    let row_spec = SampleRow { params, position: *position, prompt, answer, logprobs: *logprobs, allowed: None };
    Ok((id, sample(row, &row_spec).map_err(candle_core::Error::wrap)?))
}
