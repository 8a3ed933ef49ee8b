//! `GET /v1/models`.

use serde::{Deserialize, Serialize};

use crate::model::Capability;

/// The answer of `GET /v1/models`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelList {
    /// Always `list`.
    pub object: String,
    /// The models, sorted by id.
    pub data: Vec<ModelEntry>,
}

impl ModelList {
    /// Sorts `data` by id.
    pub fn new(mut data: Vec<ModelEntry>) -> Self {
        data.sort_by(|a, b| a.id.cmp(&b.id));
        Self { object: "list".into(), data }
    }
}

/// One model. The first four fields are OpenAI's; the rest is what a fleet adds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelEntry {
    /// What to write into `model`.
    pub id: String,
    /// Always `model`.
    pub object: String,
    /// Seconds since 1970; when the model was first seen here.
    pub created: u64,
    /// Who serves it.
    pub owned_by: String,
    /// `loaded`, `loading`, `available` or `unavailable`.
    pub state: String,
    /// The nodes that have or can load it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    /// Longest sequence in tokens, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_length: Option<usize>,
    /// What it can be asked for, once known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<Capability>,
}
