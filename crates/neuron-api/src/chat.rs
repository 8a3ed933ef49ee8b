//! `POST /v1/chat/completions`.

use axum::extract::State;
use axum::response::Response;
use cortex_core::Prompt;
use cortex_core::openai::ChatRequest;

use crate::call::{Call, JsonFields};
use crate::dialect::{Chat, Head};
use crate::error::Failure;
use crate::{Api, project, unix_seconds};

pub(crate) async fn create(State(api): State<Api>, call: Call, JsonFields(fields): JsonFields) -> Result<Response, Failure> {
    let ChatRequest { model, prompt, options } = ChatRequest::parse(fields)?;
    let head = Head { id: format!("chatcmpl-{}", call.request_id).into(), created: unix_seconds(), model: model.as_str().into() };
    let generation = project::start(&api, &call, &model, vec![Prompt::Chat(prompt)], &options, Chat(head)).await?;
    generation.answer(&call, &options).await
}
