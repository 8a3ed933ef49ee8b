//! `POST /v1/completions`.

use axum::extract::State;
use axum::response::Response;
use cortex_core::openai::CompletionRequest;

use crate::call::{Call, JsonFields};
use crate::dialect::{Head, Plain};
use crate::error::Failure;
use crate::{Api, project, unix_seconds};

pub(crate) async fn create(State(api): State<Api>, call: Call, JsonFields(fields): JsonFields) -> Result<Response, Failure> {
    let CompletionRequest { model, prompts, options } = CompletionRequest::parse(fields)?;
    let head = Head { id: format!("cmpl-{}", call.request_id).into(), created: unix_seconds(), model: model.as_str().into() };
    let dialect = Plain::new(head, prompts.len() * options.n as usize);
    let generation = project::start(&api, &call, &model, prompts, &options, dialect).await?;
    generation.answer(&call, &options).await
}
