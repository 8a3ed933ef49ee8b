//! `POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's dialect.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use cortex_core::anthropic::RequestError;
use cortex_core::openai::ApiError;

use crate::anthropic::{self, Way};
use crate::app::App;
use crate::call::Endpoint;
use crate::dispatch::dispatch_translated;
use crate::middleware::request_log::RequestId;
use crate::translate::{Asked, Chat, request};

pub(crate) async fn create(State(app): State<Arc<App>>, request: Request) -> Response {
    let way = Way { request_id: RequestId::of(&request), ping: app.config.timeouts.keep_alive_ms.duration() };
    let (asked, response) = ask(app, Endpoint::Messages, request, request::messages).await;
    match asked {
        Some(asked) if response.status().is_success() => anthropic::answer(response, asked, way).await,
        _ => anthropic::error(response, &way.request_id).await,
    }
}

/// Answered by the node's own template and tokenizer: the count is that of the same request's prompt.
pub(crate) async fn count_tokens(State(app): State<Arc<App>>, request: Request) -> Response {
    let request_id = RequestId::of(&request);
    let (_, response) = ask(app, Endpoint::CountTokens, request, request::count_tokens).await;
    if response.status().is_success() {
        anthropic::count(response, &request_id).await
    } else {
        anthropic::error(response, &request_id).await
    }
}

/// What was asked, unless the request could not be read, and the node's answer or an error, both in OpenAI's dialect.
async fn ask(
    app: Arc<App>,
    endpoint: Endpoint,
    request: Request,
    translate: fn(&[u8], bool) -> Result<Chat, RequestError>,
) -> (Option<Asked>, Response) {
    let keep_billing_header = app.config.gateway.keep_billing_header;
    let mut asked = None;
    let translate = |body: Bytes| {
        let chat = translate(&body, keep_billing_header).map_err(|error| ApiError::invalid(error.to_string()))?;
        asked = Some(chat.asked);
        Ok(chat.body)
    };
    let response = dispatch_translated(app, endpoint, request, translate).await;
    (asked, response)
}
