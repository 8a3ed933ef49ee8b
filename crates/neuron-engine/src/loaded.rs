//! A model in memory, as a node's harness sees it: ask it, watch it, unload it.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use cortex_core::{Capability, Embeddings, EventStream, GenerateRequest, HarnessError, ModelHealth, ModelId, Prompt, Relevances};
use futures::future::{BoxFuture, join_all};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::cache::kv_cache::BLOCK_SIZE;
use crate::device::RankGroup;
use crate::device::command::ModelKey;
use crate::engine::{EngineCommand, Submission};
use crate::error::DeviceError;
use crate::frontend::{Frontend, PreparedPrompt};
use crate::generation::{PromptFacts, TokenEvent, channel, event_stream};
use crate::image::EncodedImage;
use crate::models::EncoderInput;
use crate::sequence::{Sequence, SequenceId};
use crate::stats::EngineStats;
use crate::text::parser::AnswerParser;

/// What is known of a loaded model.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// The id clients use.
    pub id: ModelId,
    /// `model_type` of its configuration.
    pub architecture: String,
    /// Number of parameters.
    pub parameters: u64,
    /// Longest sequence in tokens.
    pub context: usize,
    /// What it can be asked for.
    pub capabilities: Vec<Capability>,
    /// Names of its device threads, in rank order.
    pub devices: Vec<String>,
    /// Bytes of weights on all devices.
    pub weight_bytes: u64,
    /// Bytes of KV cache on all devices.
    pub kv_bytes: u64,
    /// How long the load took.
    pub load_time: Duration,
}

/// A model in memory. Cheap to clone; every clone is the same model.
#[derive(Clone)]
pub struct LoadedModel {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) info: ModelInfo,
    pub(crate) frontend: Arc<Frontend>,
    pub(crate) ranks: RankGroup,
    pub(crate) key: ModelKey,
    pub(crate) stats: Arc<EngineStats>,
    /// Absent for an encoder.
    pub(crate) engine: Option<EngineDoor>,
    /// Prompts prepared at the same time.
    pub(crate) preparing: Semaphore,
    pub(crate) next_sequence: AtomicU64,
}

/// The way into the engine, and the places to wait in front of it.
pub(crate) struct EngineDoor {
    pub(crate) commands: mpsc::Sender<EngineCommand>,
    /// Permits are KV blocks of waiting prompts; a sequence gives its own back when it first runs.
    pub(crate) places: Arc<Semaphore>,
}

/// A request that the engine has taken.
struct Admitted {
    tokens: mpsc::Receiver<TokenEvent>,
    prompt: PromptFacts,
    parser: AnswerParser,
}

/// Tokens that one call of an encoder may take.
const ENCODE_TOKENS_MAX: usize = 8192;

impl LoadedModel {
    pub(crate) fn new(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    /// What is known of it.
    pub fn info(&self) -> &ModelInfo {
        &self.inner.info
    }

    /// Its figures of this moment.
    pub fn health(&self) -> ModelHealth {
        let health = self.inner.stats.report(&self.inner.info.id);
        ModelHealth { servable: health.servable && self.inner.ranks.loss().is_none(), ..health }
    }

    /// Waits until a step fails in a way that only a new load mends, and tells why. For ever, when a whole device fails, which no load mends,
    /// or once the model is unloaded. Does not keep it loaded.
    pub fn lost(&self) -> BoxFuture<'static, String> {
        let mut failures = self.inner.stats.failures();
        Box::pin(async move {
            match failures.wait_for(Option::is_some).await.ok().and_then(|failure| failure.clone()) {
                None | Some(DeviceError::Failed(_)) => std::future::pending().await,
                Some(error) => error.to_string(),
            }
        })
    }

    /// How often a sequence lost its blocks to another and was computed anew.
    pub fn preemptions(&self) -> u64 {
        self.inner.stats.preemptions()
    }

    /// Admits a request and answers with its events. `images` are the encoded pictures in the order in which the messages show them.
    pub async fn generate(&self, request: GenerateRequest, images: Vec<EncodedImage>) -> Result<EventStream, HarnessError> {
        let Admitted { tokens, prompt, parser } = self.admit(&request, images).await?;
        Ok(event_stream(tokens, self.inner.frontend.tokenizer().clone(), prompt, request.stop, parser))
    }

    /// Admits a request and answers with its bare tokens as they are drawn: no text, and so no stop texts. For measurements.
    pub async fn tokens(&self, request: &GenerateRequest) -> Result<mpsc::Receiver<TokenEvent>, HarnessError> {
        Ok(self.admit(request, vec![]).await?.tokens)
    }

    async fn admit(&self, request: &GenerateRequest, images: Vec<EncodedImage>) -> Result<Admitted, HarnessError> {
        let door = self.door()?;
        let mut prompt = self.prepare(request.prompt.clone(), images).await?;
        let context = self.inner.info.context;
        let prompt_len = prompt.ids.len();
        let asked = request.max_tokens.map_or(usize::MAX, |asked| asked as usize);
        if prompt_len + asked.min(1) > context {
            return Err(HarnessError::ContextLength { prompt_tokens: prompt_len, context });
        }
        let answer_max = asked.min(context - prompt_len);
        let facts = PromptFacts { tokens: prompt_len as u32, scored_after: request.prompt_logprobs.then_some(prompt.ids[0]) };
        let sequence = self.sequence(request, &prompt, prompt_len + answer_max)?;
        let place = self.place(door, prompt_len)?;
        let (events, tokens) = channel(answer_max);
        let constraint = prompt.constraint.take().map(Box::new);
        let submission = Submission { sequence, images: prompt.images, constraint, events, place };
        match door.commands.try_send(EngineCommand::Submit(Box::new(submission))) {
            Ok(()) => Ok(Admitted { tokens, prompt: facts, parser: prompt.parser }),
            Err(TrySendError::Full(_)) => Err(self.overloaded("the queue of this model is full", prompt_len)),
            Err(TrySendError::Closed(_)) => Err(HarnessError::ShuttingDown),
        }
    }

    /// One vector per input.
    pub async fn embed(&self, inputs: Vec<Prompt>) -> Result<Embeddings, HarnessError> {
        if !self.inner.info.capabilities.contains(&Capability::Embeddings) {
            return Err(HarnessError::invalid("model", "this model makes no embeddings; GET /v1/models lists the `embeddings` capability"));
        }
        let mut texts = Vec::with_capacity(inputs.len());
        for input in inputs {
            texts.push(EncoderInput::text(self.prepare(input, Vec::new()).await?.ids));
        }
        let (vectors, prompt_tokens) = self.encode(texts).await?;
        Ok(Embeddings { vectors, prompt_tokens })
    }

    /// How well each document answers the query: what the model's head says, between 0 and 1.
    pub async fn rerank(&self, query: String, documents: Vec<String>) -> Result<Relevances, HarnessError> {
        if !self.inner.info.capabilities.contains(&Capability::Rerank) {
            return Err(HarnessError::invalid("model", "this model ranks no texts; GET /v1/models lists the `rerank` capability"));
        }
        let frontend = self.inner.frontend.clone();
        let pairs = move || documents.iter().map(|document| frontend.pair(&query, document)).collect::<Result<Vec<_>, _>>();
        let (outputs, prompt_tokens) = self.encode(self.in_turn(pairs).await?).await?;
        let sigmoid = |logit: f32| 1.0 / (1.0 + (-logit).exp());
        Ok(Relevances { scores: outputs.into_iter().flatten().map(sigmoid).collect(), prompt_tokens })
    }

    /// What the encoder makes of each input, and how many tokens they have together.
    async fn encode(&self, inputs: Vec<EncoderInput>) -> Result<(Vec<Vec<f32>>, u32), HarnessError> {
        let context = self.inner.info.context;
        if let Some(input) = inputs.iter().find(|input| input.ids.len() > context) {
            return Err(HarnessError::ContextLength { prompt_tokens: input.ids.len(), context });
        }
        let tokens = inputs.iter().map(|input| input.ids.len()).sum::<usize>() as u32;
        let mut outputs = Vec::with_capacity(inputs.len());
        for batch in batches(inputs) {
            outputs.extend(self.inner.ranks.first().encode(self.inner.key, batch).await?);
        }
        Ok((outputs, tokens))
    }

    /// The ids that `prompt` would be sent to the model as.
    pub async fn tokenize(&self, prompt: Prompt, images: Vec<EncodedImage>) -> Result<Vec<u32>, HarnessError> {
        Ok(self.prepare(prompt, images).await?.ids)
    }

    /// The text of `ids`, special tokens included.
    pub fn detokenize(&self, ids: &[u32]) -> Result<String, HarnessError> {
        self.inner.frontend.check_ids(ids)?;
        Ok(self.inner.frontend.tokenizer().decode(ids, false))
    }

    /// Takes nothing more, lets what runs finish for at most `drain`, and answers when the memory is back.
    pub async fn unload(&self, drain: Duration) {
        if let Some(door) = &self.inner.engine {
            let (done, drained) = oneshot::channel();
            let command = EngineCommand::Drain { until: Instant::now() + drain, done };
            if door.commands.send(command).await.is_ok() {
                // An engine that ended without an answer has nothing left to drain.
                let _ = drained.await;
            }
        }
        join_all(self.inner.ranks.devices().iter().map(|device| device.unload(self.inner.key))).await;
    }

    fn door(&self) -> Result<&EngineDoor, HarnessError> {
        let door = self.inner.engine.as_ref().ok_or_else(|| {
            HarnessError::invalid(
                "model",
                "this model writes nothing: it is one for /v1/embeddings or /v1/rerank; GET /v1/models tells which",
            )
        })?;
        match self.inner.ranks.loss().or_else(|| self.inner.stats.failure()) {
            None => Ok(door),
            Some(error @ DeviceError::Failed(_)) => Err(error.into()),
            Some(_) => Err(HarnessError::Internal("this model failed in an earlier step; unload it and load it again".into())),
        }
    }

    async fn prepare(&self, prompt: Prompt, images: Vec<EncodedImage>) -> Result<PreparedPrompt, HarnessError> {
        let frontend = self.inner.frontend.clone();
        self.in_turn(move || frontend.prepare(&prompt, &images)).await
    }

    /// Work of milliseconds and more, beside the async threads, and not too much of it at once.
    async fn in_turn<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T, HarnessError> + Send + 'static) -> Result<T, HarnessError> {
        let _turn = self.inner.preparing.acquire().await.map_err(|_| HarnessError::ShuttingDown)?;
        let work = tokio::task::spawn_blocking(work).await;
        work.map_err(|error| HarnessError::Internal(format!("preparing the prompt failed: {error}")))?
    }

    fn sequence(&self, request: &GenerateRequest, prompt: &PreparedPrompt, total_len_max: usize) -> Result<Sequence, HarnessError> {
        let frontend = &self.inner.frontend;
        let biased: Vec<u32> = request.sampling.logit_bias.iter().map(|(id, _)| *id).collect();
        frontend.check_ids(&biased).map_err(|error| HarnessError::invalid("logit_bias", error.to_string()))?;
        let id = SequenceId(self.inner.next_sequence.fetch_add(1, Relaxed));
        let mut sequence = Sequence::new(id, prompt.ids.clone(), total_len_max);
        let fresh_seed = RandomState::new().hash_one(id.0);
        sequence.sampling = Arc::new(request.sampling.resolve(frontend.sampling_defaults(), fresh_seed));
        sequence.logprobs = request.logprobs;
        if request.prompt_logprobs {
            sequence.score_from = 1;
            sequence.logprobs = Some(request.logprobs.unwrap_or(0));
        }
        sequence.held_to_form = prompt.constraint.is_some();
        sequence.images = prompt.spans.clone();
        sequence.positions = prompt.positions.clone();
        sequence.rope_delta = prompt.rope_delta;
        Ok(sequence)
    }

    fn place(&self, door: &EngineDoor, prompt_len: usize) -> Result<OwnedSemaphorePermit, HarnessError> {
        let blocks = prompt_len.div_ceil(BLOCK_SIZE) as u32;
        let place = door.places.clone().try_acquire_many_owned(blocks);
        place.map_err(|_| self.overloaded("the prompts that wait already fill the queue", prompt_len))
    }

    fn overloaded(&self, message: &str, prompt_len: usize) -> HarnessError {
        HarnessError::Overloaded { message: message.into(), retry_after_s: self.inner.stats.wait_s(prompt_len as u64) }
    }
}

/// Cuts inputs into calls of at most [`ENCODE_TOKENS_MAX`] tokens, or of one input.
fn batches(inputs: Vec<EncoderInput>) -> Vec<Vec<EncoderInput>> {
    let mut batches: Vec<Vec<EncoderInput>> = Vec::new();
    let mut tokens = 0;
    for input in inputs {
        tokens += input.ids.len();
        match batches.last_mut() {
            Some(batch) if tokens <= ENCODE_TOKENS_MAX => batch.push(input),
            _ => {
                tokens = input.ids.len();
                batches.push(vec![input]);
            }
        }
    }
    batches
}
