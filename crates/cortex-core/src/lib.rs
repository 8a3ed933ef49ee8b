//! The words that cortex (the gateway) and neuron (the node daemon) share.
//!
//! Nothing here performs I/O or knows an async runtime: these are the types that travel between the two programs, the
//! [`Harness`] trait that a node implements, and the names of metrics and headers.

pub mod anthropic;
pub mod config;
pub mod discovery;
pub mod harness;
pub mod headers;
pub mod metrics;
pub mod model;
pub mod node;
pub mod openai;
pub mod placement;
pub mod sampling;
pub mod sse;

pub use discovery::{DeviceHealth, DeviceInfo, DeviceKind, Discovery, Health, ModelHealth};
pub use harness::{
    ChatPrompt, EmbedRequest, Embeddings, EventStream, FinishReason, GenerateEvent, GenerateRequest, Harness, HarnessError, Prompt,
    Relevances, RerankRequest, TokenLogprob, Usage,
};
pub use model::{Capability, ModelId, ModelReport, ModelSpec, ModelStatus, UnloadRequest};
pub use node::{FleetReport, GatewayReport, MemoryReport, ModelAction, ModelActionReport, NodeId, NodeReport, NodeState};
pub use placement::{PlacedModel, Placement};
pub use sampling::{SamplingDefaults, SamplingParams, SamplingRequest};
