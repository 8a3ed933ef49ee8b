//! `POST /tokenize` and `/detokenize`: the model's own tokenizer and template.

use axum::Json;
use axum::extract::State;
use cortex_core::Prompt;
use cortex_core::openai::chat::chat_prompt;
use cortex_core::openai::completions::token_ids;
use cortex_core::openai::fields::missing;
use serde::{Deserialize, Serialize};

use crate::Api;
use crate::call::JsonFields;
use crate::error::Failure;

/// The answer of `POST /tokenize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizeAnswer {
    /// How many tokens: what `usage.prompt_tokens` of a generation would say.
    pub count: usize,
    /// Longest sequence of the model in tokens, once loaded.
    pub max_model_len: Option<usize>,
    /// Their ids.
    pub tokens: Vec<u32>,
}

/// The answer of `POST /detokenize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetokenizeAnswer {
    /// The text, special tokens included.
    pub prompt: String,
}

/// Takes `prompt`, or what `/v1/chat/completions` takes.
pub(crate) async fn tokenize(State(api): State<Api>, JsonFields(mut fields): JsonFields) -> Result<Json<TokenizeAnswer>, Failure> {
    let model = fields.model()?;
    let prompt = match fields.string("prompt")? {
        Some(text) => Prompt::Text(text),
        None => Prompt::Chat(chat_prompt(&mut fields)?),
    };
    let tokens = api.harness.tokenize(&model, prompt).await?;
    let max_model_len = api.harness.models().into_iter().find(|report| report.id == model).and_then(|report| report.context);
    Ok(Json(TokenizeAnswer { count: tokens.len(), max_model_len, tokens }))
}

pub(crate) async fn detokenize(State(api): State<Api>, JsonFields(mut fields): JsonFields) -> Result<Json<DetokenizeAnswer>, Failure> {
    let model = fields.model()?;
    let ids = fields.array("tokens")?.ok_or_else(|| missing("tokens"))?;
    let prompt = api.harness.detokenize(&model, token_ids("tokens", &ids)?).await?;
    Ok(Json(DetokenizeAnswer { prompt }))
}
