//! `POST /v1/rerank`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use cortex_core::Usage;
use cortex_core::openai::rerank::{Ranking, RankingRequest};

use crate::Api;
use crate::call::{Call, JsonFields};
use crate::error::Failure;

pub(crate) async fn create(State(api): State<Api>, call: Call, JsonFields(fields): JsonFields) -> Result<Response, Failure> {
    let request = RankingRequest::parse(fields)?;
    let found = api.harness.rerank(request.asked.clone()).await?;
    let usage = Usage { prompt_tokens: found.prompt_tokens, ..Usage::default() };
    let mut response = Json(Ranking::new(format!("rerank-{}", call.request_id), request, found)).into_response();
    call.report_usage(&mut response, &usage);
    Ok(response)
}
