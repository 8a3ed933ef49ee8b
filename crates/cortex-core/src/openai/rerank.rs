//! `POST /v1/rerank`, as Jina and Cohere shaped it; OpenAI has no such endpoint.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ApiError;
use super::embeddings::EmbeddingUsage;
use super::fields::{Fields, missing, wrong_type, wrong_value};
use crate::harness::{Relevances, RerankRequest};

/// Most documents of one request.
pub const DOCUMENTS_MAX: usize = 1000;

/// A request, checked.
#[derive(Clone, Debug)]
pub struct RankingRequest {
    /// What the harness is asked.
    pub asked: RerankRequest,
    /// Tell only so many of the best.
    pub top_n: Option<usize>,
    /// Repeat the texts in the answer.
    pub return_documents: bool,
}

impl RankingRequest {
    /// Reads the fields that are known and ignores the rest; the error names the first field that is wrong.
    pub fn parse(mut fields: Fields) -> Result<Self, ApiError> {
        let model = fields.model()?;
        let query = fields.string("query")?.ok_or_else(|| missing("query"))?;
        let documents = fields.array("documents")?.ok_or_else(|| missing("documents"))?;
        if documents.is_empty() || documents.len() > DOCUMENTS_MAX {
            return Err(wrong_value("documents", &format!("must hold 1 to {DOCUMENTS_MAX} texts"), &documents.len().into()));
        }
        Ok(Self {
            asked: RerankRequest { model, query, documents: documents.into_iter().map(text).collect::<Result<_, _>>()? },
            top_n: fields.integer("top_n", 1..=i64::MAX)?.map(|top_n| top_n as usize),
            return_documents: fields.flag("return_documents")?.unwrap_or(false),
        })
    }
}

/// A document is a text, or an object that holds one.
fn text(mut document: Value) -> Result<String, ApiError> {
    let inner = document.get_mut("text").map(Value::take);
    match inner.unwrap_or(document) {
        Value::String(text) => Ok(text),
        other => Err(wrong_type("documents", "an array of strings, or of objects with `text`", &other)),
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ranking {
    /// Names the answer.
    pub id: String,
    /// Always `list`.
    pub object: String,
    /// The model, as the request named it.
    pub model: String,
    /// The documents, best first; of equals, the one that came first.
    pub results: Vec<RankedDocument>,
    /// What was counted.
    pub usage: EmbeddingUsage,
}

/// One document in its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankedDocument {
    /// Which one of the request, from 0.
    pub index: usize,
    /// How well it answers the query, from 0 to 1.
    pub relevance_score: f32,
    /// Itself, if asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<RankedText>,
}

/// A document's text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankedText {
    /// The words.
    pub text: String,
}

impl Ranking {
    /// Puts the documents of `request` in order.
    pub fn new(id: String, request: RankingRequest, found: Relevances) -> Self {
        let RankingRequest { asked, top_n, return_documents } = request;
        let texts = asked.documents.into_iter().map(|text| return_documents.then_some(RankedText { text }));
        let places = found.scores.into_iter().zip(texts).enumerate();
        let mut results: Vec<_> =
            places.map(|(index, (relevance_score, document))| RankedDocument { index, relevance_score, document }).collect();
        results.sort_by(|a, b| b.relevance_score.total_cmp(&a.relevance_score));
        results.truncate(top_n.unwrap_or(usize::MAX));
        let usage = EmbeddingUsage { prompt_tokens: found.prompt_tokens, total_tokens: found.prompt_tokens };
        Self { id, object: "list".into(), model: asked.model.to_string(), results, usage }
    }
}
