//! `POST /v1/embeddings`.

use serde::{Deserialize, Serialize};

use super::ApiError;
use super::completions::prompts;
use super::fields::{Fields, missing, wrong_value};
use crate::harness::Prompt;
use crate::model::ModelId;

/// Most inputs of one request.
pub const INPUTS_MAX: usize = 2048;

/// An embedding request, checked.
#[derive(Clone, Debug)]
pub struct EmbeddingRequest {
    /// Which model.
    pub model: ModelId,
    /// At least one.
    pub inputs: Vec<Prompt>,
    /// How vectors are written.
    pub encoding: EncodingFormat,
    /// Keep only this many leading numbers of each vector, scaled back to unit length.
    pub dimensions: Option<usize>,
}

/// How vectors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncodingFormat {
    /// As JSON numbers.
    Float,
    /// As base64 of little-endian `f32`; the official client asks for this.
    Base64,
}

impl EmbeddingRequest {
    /// Reads the fields that are known and ignores the rest; the error names the first field that is wrong.
    pub fn parse(mut fields: Fields) -> Result<Self, ApiError> {
        let model = fields.model()?;
        let input = fields.take("input").ok_or_else(|| missing("input"))?;
        Ok(Self {
            model,
            inputs: prompts("input", input, INPUTS_MAX)?,
            encoding: match fields.string("encoding_format")?.as_deref() {
                None | Some("float") => EncodingFormat::Float,
                Some("base64") => EncodingFormat::Base64,
                Some(other) => return Err(wrong_value("encoding_format", "must be \"float\" or \"base64\"", &other.into())),
            },
            dimensions: fields.integer("dimensions", 1..=i64::MAX)?.map(|dimensions| dimensions as usize),
        })
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EmbeddingList {
    /// Always `list`.
    pub object: String,
    /// One per input, in order.
    pub data: Vec<EmbeddingEntry>,
    /// The model, as the request named it.
    pub model: String,
    /// What was counted.
    pub usage: EmbeddingUsage,
}

/// One vector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EmbeddingEntry {
    /// Always `embedding`.
    pub object: String,
    /// Which input, from 0.
    pub index: usize,
    /// The vector.
    pub embedding: EmbeddingVector,
}

/// A vector as [`EncodingFormat`] writes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EmbeddingVector {
    /// JSON numbers.
    Float(Vec<f32>),
    /// base64 of little-endian `f32`.
    Base64(String),
}

/// Tokens of all inputs together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmbeddingUsage {
    /// Tokens of the inputs.
    pub prompt_tokens: u32,
    /// The same: nothing is generated.
    pub total_tokens: u32,
}
