//! One rank of one model on its device thread: it turns a step's plain data into tensors, runs the model, and samples.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use crate::batch::{Asked, Batch, BatchSequence, NewTokens, Sample};
use crate::cache::kv_cache::LayerCaches;
use crate::device::collective::{Collective, Shard};
use crate::device::command::{ShardLoad, ShardReport, StepInput, StepOutput, StepReply};
use crate::device::completion::Completions;
use crate::error::LoadError;
use crate::gpu_steps::GpuSteps;
use crate::image::{FeatureCache, ImageFeatures, PreparedImage};
use crate::models::registry::{Model, build, build_vision};
use crate::models::{EncoderInput, ModelInput, VisionTower, Visual};
use crate::sampler::{Sampled, sample};
use crate::sequence::{SequenceId, SequenceMap};
use crate::weights::Weights;

/// Bytes of image features kept per model.
const FEATURE_BYTES_MAX: usize = 256 << 20;

/// A model, its KV cache, and its place among the ranks.
pub struct ModelRunner {
    model: Model,
    vision: Option<Box<dyn VisionTower>>,
    caches: Option<LayerCaches>,
    features: FeatureCache,
    /// What the last step drew, for the pending tokens of the next. Empty after a step that failed, and on ranks that do not draw.
    drawn: SequenceMap<u32>,
    /// What a GPU keeps from step to step.
    gpu: GpuSteps,
    completions: Completions,
    shard: Shard,
    device: Device,
    weight_bytes: u64,
    /// Last, since captured steps hold on to it.
    company: Company,
}

impl ModelRunner {
    /// Reads this rank's part of the checkpoint. The KV cache comes later: its size depends on what is left.
    pub fn load(load: ShardLoad, device: Device, completions: Completions) -> std::result::Result<Self, LoadError> {
        load.comm.join(&device).map_err(|error| LoadError::Device(error.to_string()))?;
        let weights = Weights::open(&load.folder, &device, load.precision)?;
        let model = build(&load.config, &weights, load.comm.clone(), load.shard)?;
        let vision = build_vision(&load.config, &weights, load.vision)?;
        Ok(Self {
            model,
            vision,
            caches: None,
            features: FeatureCache::new(FEATURE_BYTES_MAX),
            drawn: SequenceMap::default(),
            gpu: GpuSteps::default(),
            completions,
            company: Company(load.comm),
            shard: load.shard,
            weight_bytes: weights.loaded_bytes(),
            device,
        })
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
        self.company.0.abort();
    }

    /// One step of a decoder. A processor is done when this returns and answers at once; a GPU goes on, and answers when it is done.
    pub fn execute(&mut self, step: &StepInput, reply: &StepReply) -> Result<()> {
        match self.device.is_cpu() {
            true => reply.answer(Ok(self.step(step)?)),
            false => self.start_on_gpu(step, reply)?,
        }
        Ok(())
    }

    /// Queues a step. The tokens it draws stay on the device for the next one, and are on their way to the host.
    fn start_on_gpu(&mut self, step: &StepInput, reply: &StepReply) -> Result<()> {
        let rows = self.gpu.take_rows();
        let batch = without_lost(&step.batch, &rows);
        if batch.sequences.is_empty() {
            reply.answer(Ok(StepOutput::default()));
            return Ok(());
        }
        let Self { model: Model::Causal(lm), vision, caches: Some(caches), features, device, gpu, .. } = self else {
            bail!("this model has no KV cache: it is an encoder, or `reserve` was not called")
        };
        let visual = visual(&batch, &step.images, vision.as_deref(), features, device)?;
        let logits = gpu.forward(&**lm, &batch, &rows, visual, caches, device)?;
        // Every rank has the same logits and draws the same tokens from them, so that the next step finds them on its own device.
        let drawn = gpu.draw(&batch, &logits)?;
        if self.shard.rank > 0 {
            reply.answer(Ok(StepOutput::default()));
            return Ok(());
        }
        let (drawn, reply) = (gpu.send(drawn)?, reply.clone());
        self.completions.run(move || reply.answer(drawn.wait()));
        Ok(())
    }

    fn step(&mut self, step: &StepInput) -> Result<StepOutput> {
        let pending = self.pending(&step.batch)?;
        let batch = without_lost(&step.batch, &pending);
        if batch.sequences.is_empty() {
            return Ok(StepOutput::default());
        }
        let Self { model: Model::Causal(lm), vision, caches: Some(caches), features, device, .. } = self else {
            bail!("this model has no KV cache: it is an encoder, or `reserve` was not called")
        };
        let visual = visual(&batch, &step.images, vision.as_deref(), features, device)?;
        let logits = lm.forward(&input(&batch, &pending, visual, device)?, caches)?;
        if self.shard.rank > 0 {
            return Ok(StepOutput::default());
        }
        let output = draw(&batch, &logits)?;
        self.drawn = output.sampled.iter().map(|(id, sampled)| (*id, sampled.token)).collect();
        Ok(output)
    }

    /// What the last step drew. Only rank 0 knows; where there are others, it tells them the tokens that `batch` waits for.
    fn pending(&mut self, batch: &Batch) -> Result<SequenceMap<u32>> {
        let drawn = std::mem::take(&mut self.drawn);
        let waiting: Vec<SequenceId> = if self.shard.world_size > 1 { batch.pending().collect() } else { Vec::new() };
        if waiting.is_empty() {
            return Ok(drawn);
        }
        let ids: Vec<u32> = waiting.iter().map(|id| drawn.get(id).copied().unwrap_or_default()).collect();
        let all = self.company.0.all_gather(Tensor::from_vec(ids, waiting.len(), &self.device)?, 0)?;
        let ids = all.narrow(0, 0, waiting.len())?.to_vec1::<u32>()?;
        Ok(waiting.into_iter().zip(ids).collect())
    }

    /// Token sequences to vectors, one each.
    pub fn encode(&self, inputs: &[EncoderInput]) -> Result<Vec<Vec<f32>>> {
        let Model::Encoder(encoder) = &self.model else { bail!("this model is a decoder: it has no embeddings") };
        let lens: Vec<usize> = inputs.iter().map(|input| input.ids.len()).collect();
        let ids: Vec<u32> = inputs.iter().flat_map(|input| &input.ids).copied().collect();
        let types: Vec<u32> = inputs.iter().flat_map(EncoderInput::types).collect();
        let row = |numbers: Vec<u32>| Tensor::new(numbers, &self.device);
        encoder.encode(&row(ids)?, &row(types)?, &lens)?.to_vec2()
    }
}

/// The other ranks' company, left when this is dropped.
struct Company(Arc<dyn Collective>);

impl Drop for Company {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// The step without the sequences whose pending token was lost in a step that failed. Their engine knows of that failure.
fn without_lost<'a>(batch: &'a Batch, pending: &SequenceMap<u32>) -> Cow<'a, Batch> {
    let is_lost = |share: &BatchSequence| share.tokens == NewTokens::Pending && !pending.contains_key(&share.id);
    if !batch.sequences.iter().any(is_lost) {
        return Cow::Borrowed(batch);
    }
    let sequences = batch.sequences.iter().filter(|share| !is_lost(share)).cloned().collect();
    Cow::Owned(Batch { sequences, block_size: batch.block_size })
}

fn input(batch: &Batch, pending: &SequenceMap<u32>, visual: Option<Visual>, device: &Device) -> Result<ModelInput> {
    let tokens = batch.tokens();
    let Some(ids) = batch.ids(pending) else { bail!("a token that this step starts from was not drawn") };
    let rows = batch.logit_rows();
    let count = rows.len();
    Ok(ModelInput {
        ids: Tensor::from_vec(ids, tokens, device)?,
        positions: Tensor::from_vec(batch.positions(), (3, tokens), device)?,
        paged: batch.paged(),
        logit_rows: if count == tokens { None } else { Some(Tensor::from_vec(rows, count, device)?) },
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

/// One token for each row that is asked something; `logits` has these rows in the batch's order.
fn draw(batch: &Batch, logits: &Tensor) -> Result<StepOutput> {
    let asked: Vec<(Asked, &Sample)> = batch.asked().collect();
    let vocabulary = logits.dim(1)?;
    let mut rows = logits.flatten_all()?.to_vec1::<f32>()?;
    let answers = rows.par_chunks_mut(vocabulary).zip(asked).map(|(row, (asked, how))| Ok((asked, draw_one(row, how)?)));
    Ok(answers.collect::<Result<Vec<_>>>()?.into_iter().collect())
}

fn draw_one(row: &mut [f32], how: &Sample) -> Result<Sampled> {
    sample(row, &how.row()).map_err(candle_core::Error::wrap)
}
