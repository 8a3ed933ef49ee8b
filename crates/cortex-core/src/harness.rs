//! What a node can do. The real neuron and the mock both implement [`Harness`]; the HTTP face knows only the trait.

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::discovery::{Discovery, Health};
use crate::model::{ModelId, ModelReport, ModelSpec, UnloadRequest};
use crate::sampling::SamplingRequest;

/// A node's abilities.
#[async_trait]
pub trait Harness: Send + Sync + 'static {
    /// Facts that do not change while the daemon runs.
    fn discovery(&self) -> Discovery;
    /// Figures that do.
    fn health(&self) -> Health;
    /// Every model this node can serve, loaded or not.
    fn models(&self) -> Vec<ModelReport>;
    /// Loads a model and answers when it serves. Callers of the same id share one load.
    async fn load(&self, spec: ModelSpec) -> Result<ModelReport, HarnessError>;
    /// Drains and unloads, and answers when the memory is back.
    async fn unload(&self, request: UnloadRequest) -> Result<(), HarnessError>;
    /// Answers once the request is admitted. Dropping the stream cancels the generation.
    async fn generate(&self, request: GenerateRequest) -> Result<EventStream, HarnessError>;
    /// Sentence embeddings.
    async fn embed(&self, request: EmbedRequest) -> Result<Embeddings, HarnessError>;
    /// How well texts answer a query.
    async fn rerank(&self, request: RerankRequest) -> Result<Relevances, HarnessError>;
    /// The ids that `prompt` would be sent to the model as.
    async fn tokenize(&self, model: &ModelId, prompt: Prompt) -> Result<Vec<u32>, HarnessError>;
    /// The text of `ids`, special tokens included.
    async fn detokenize(&self, model: &ModelId, ids: Vec<u32>) -> Result<String, HarnessError>;
}

/// Events of one generation: `Started`, then `Prompt` if it was asked for, then what the model says, then exactly one `Finish`, or an error at any point.
pub type EventStream = BoxStream<'static, Result<GenerateEvent, HarnessError>>;

/// One sequence to generate.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// Which model.
    pub model: ModelId,
    /// For logs; the same id that the client sees in `x-request-id`.
    pub request_id: String,
    /// What to continue.
    pub prompt: Prompt,
    /// How to choose tokens.
    pub sampling: SamplingRequest,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Longest answer in tokens, 0 where only the prompt is wanted; absent: up to the model's context.
    pub max_tokens: Option<u32>,
    /// Report the log-probability of each token, and of this many alternatives.
    pub logprobs: Option<u8>,
    /// Report the same of the prompt's tokens.
    pub prompt_logprobs: bool,
}

/// What the model continues.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// Messages for the model's chat template.
    Chat(ChatPrompt),
    /// Text as it is.
    Text(String),
    /// Token ids as they are.
    Tokens(Vec<u32>),
    /// What stands between two texts, for models that were trained to fill it in.
    Infill {
        /// Before it.
        prefix: String,
        /// Behind it.
        suffix: String,
    },
}

/// A conversation, kept as the JSON that the client sent, because a chat template may read any field.
#[derive(Clone, Debug, Default)]
pub struct ChatPrompt {
    /// The turns; each has at least `role`.
    pub messages: Vec<Map<String, Value>>,
    /// Tool definitions, if any; without them nothing in the answer is read as a call.
    pub tools: Option<Vec<Value>>,
    /// Ends with the assistant's header, so that the model answers.
    pub add_generation_prompt: bool,
    /// Cuts after the last message's text, so that the model goes on with it.
    pub continue_final_message: bool,
    /// Further template variables (`enable_thinking`).
    pub template_kwargs: Map<String, Value>,
    /// Whether the answer must call a tool.
    pub tool_choice: ToolChoice,
    /// The answer holds one call at most.
    pub one_call_at_most: bool,
    /// What the answer's text must be.
    pub format: AnswerFormat,
}

/// Whether an answer must call a tool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// As the model likes.
    #[default]
    Auto,
    /// At least one of these functions; of any, where the list is empty.
    Required(Vec<String>),
}

/// What an answer's text must be.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum AnswerFormat {
    /// Anything.
    #[default]
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that this schema allows.
    JsonSchema(Value),
}

/// What happens during one generation.
#[derive(Clone, Debug, PartialEq)]
pub enum GenerateEvent {
    /// The prompt is in the KV cache; the first token follows.
    Started {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// How many of them were found in the prefix cache.
        cached_tokens: u32,
    },
    /// The prompt's tokens, where [`GenerateRequest::prompt_logprobs`] asked for them.
    Prompt {
        /// The text of the first one. It has no probability, since nothing comes before it.
        first: String,
        /// The others, in order.
        rest: Vec<TokenLogprob>,
    },
    /// More of the answer. The text may be empty while a character is incomplete.
    Text {
        /// New characters.
        text: String,
        /// One entry per token that this event stands for; empty unless asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// More of what the model thinks before it answers. Only for [`Prompt::Chat`].
    Reasoning {
        /// New characters.
        text: String,
        /// As in `Text`.
        logprobs: Vec<TokenLogprob>,
    },
    /// A call of a tool begins; calls come one after the other. Only where [`ChatPrompt::tools`] offered some.
    ToolCall {
        /// Which call of this answer, from 0.
        index: u32,
        /// Names the call: `call_…`, unique.
        id: String,
        /// The function.
        name: String,
    },
    /// More of the arguments of the call that began last. Together they are a JSON object as text, as the model wrote it; a call that the
    /// model did not finish, or wrote wrongly, has its words as far as they go.
    ToolArguments {
        /// The call's index.
        index: u32,
        /// New characters.
        text: String,
    },
    /// The end. Nothing follows.
    Finish {
        /// Why.
        reason: FinishReason,
        /// The stop text that ended it, if one did.
        stop: Option<String>,
        /// What was counted.
        usage: Usage,
    },
}

/// Why a generation ended, in OpenAI's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended its turn, or a stop text was seen.
    Stop,
    /// `max_tokens` or the context was reached.
    Length,
    /// The model ended its turn, and called at least one tool.
    ToolCalls,
}

/// What was counted for one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// How many of them were found in the prefix cache.
    pub cached_tokens: u32,
    /// Tokens generated.
    pub completion_tokens: u32,
    /// How many of them were a thought: from `<think>` to `</think>`, with both.
    pub reasoning_tokens: u32,
}

/// A chosen token, its log-probability, and the alternatives.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub chosen: TokenChoice,
    /// The most probable tokens at this place, best first.
    pub top: Vec<TokenChoice>,
}

/// A token with its natural-log probability.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenChoice {
    /// The id in the vocabulary.
    pub id: u32,
    /// Its text; bytes that are no UTF-8 on their own are replaced.
    pub text: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// ln p, before temperature and filters.
    pub logprob: f32,
}

impl TokenChoice {
    /// The log-probability as JSON can hold it: an impossible token's `-inf` becomes -9999.
    pub fn finite_logprob(&self) -> f32 {
        self.logprob.max(-9999.0)
    }
}

/// Texts to embed.
#[derive(Clone, Debug)]
pub struct EmbedRequest {
    /// Which model.
    pub model: ModelId,
    /// The inputs; each is text or token ids.
    pub inputs: Vec<Prompt>,
}

/// One vector per input, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Embeddings {
    /// Vectors of unit length where the model normalises.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all inputs together.
    pub prompt_tokens: u32,
}

/// Texts to hold against a query.
#[derive(Clone, Debug)]
pub struct RerankRequest {
    /// Which model.
    pub model: ModelId,
    /// What is asked.
    pub query: String,
    /// What may answer it.
    pub documents: Vec<String>,
}

/// How well each text answers a query.
#[derive(Clone, Debug, PartialEq)]
pub struct Relevances {
    /// From 0 to 1, in the order of the texts.
    pub scores: Vec<f32>,
    /// Tokens of all pairs together; the query counts in each.
    pub prompt_tokens: u32,
}

/// Why a node could not do what it was asked. Each variant is one kind of answer that a caller treats differently.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum HarnessError {
    /// No such model here.
    #[error("the model `{0}` is not known on this node")]
    ModelNotFound(ModelId),
    /// Known, but not in memory.
    #[error("the model `{0}` is not loaded on this node")]
    ModelNotLoaded(ModelId),
    /// The request itself is wrong.
    #[error("{message}")]
    InvalidRequest {
        /// What is wrong and what to do.
        message: String,
        /// The field at fault.
        param: Option<String>,
    },
    /// The prompt and the answer do not fit the context.
    #[error("the prompt has {prompt_tokens} tokens, but the model's context is {context} tokens")]
    ContextLength {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// The limit.
        context: usize,
    },
    /// Every place is taken.
    #[error("the node is busy: {message}; retry in {retry_after_s} s")]
    Overloaded {
        /// What is full.
        message: String,
        /// When to come back, in seconds.
        retry_after_s: u64,
    },
    /// The model cannot be loaded.
    #[error("cannot load `{model}`: {reason}")]
    CannotLoad {
        /// The model.
        model: ModelId,
        /// What went wrong and what to do.
        reason: String,
    },
    /// The action is not newer than the last that this node accepted, and another one.
    #[error("generation {given} is stale: this node has seen {current}")]
    StaleGeneration {
        /// The one in the request.
        given: u64,
        /// The one the node has.
        current: u64,
    },
    /// A device failed, and the models on it are being loaded anew.
    #[error("{reason}; its models come back by themselves, retry in {retry_after_s} s")]
    DeviceFailed {
        /// Which error the device is stuck in.
        reason: String,
        /// When to come back, in seconds.
        retry_after_s: u64,
    },
    /// The daemon is draining or the model is being unloaded.
    #[error("the node is shutting down or the model is being unloaded")]
    ShuttingDown,
    /// The generation was aborted by the node.
    #[error("internal error: {0}")]
    Internal(String),
}

impl HarnessError {
    /// An [`HarnessError::InvalidRequest`] about `param`.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::InvalidRequest { message: message.into(), param: Some(param.into()) }
    }
}
