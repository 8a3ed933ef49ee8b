//! `POST /v1/completions`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use cortex_core::openai::CompletionRequest;
use cortex_core::{HarnessError, ModelId, Prompt};

use crate::call::{Call, JsonFields};
use crate::dialect::{Head, Plain};
use crate::error::Failure;
use crate::{Api, project, unix_seconds};

pub(crate) async fn create(State(api): State<Api>, call: Call, JsonFields(fields): JsonFields) -> Result<Response, Failure> {
    let CompletionRequest { model, prompts, echo, options } = CompletionRequest::parse(fields)?;
    let head = Head { id: format!("cmpl-{}", call.request_id).into(), created: unix_seconds(), model: model.as_str().into() };
    let mut echoes = Vec::with_capacity(prompts.len() * options.n as usize);
    for prompt in &prompts {
        let text = if echo { Some(text_of(&api, &model, prompt).await?) } else { None };
        echoes.extend(std::iter::repeat_n(text, options.n as usize));
    }
    let dialect = Plain::new(head, echoes);
    let generation = project::start(&api, &call, &model, prompts, &options, dialect).await?;
    generation.answer(&call, &options).await
}

/// The prompt as its answer repeats it.
async fn text_of(api: &Api, model: &ModelId, prompt: &Prompt) -> Result<Arc<str>, HarnessError> {
    match prompt {
        Prompt::Text(text) | Prompt::Infill { prefix: text, .. } => Ok(text.as_str().into()),
        Prompt::Tokens(ids) => Ok(api.harness.detokenize(model, ids.clone()).await?.into()),
        Prompt::Chat(_) => Err(HarnessError::invalid("prompt", "a conversation cannot be repeated as text; use /v1/chat/completions")),
    }
}
