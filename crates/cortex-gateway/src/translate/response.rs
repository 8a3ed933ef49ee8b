//! Whole answers of a node in Anthropic's words.

use cortex_core::anthropic::{Message, MessageFold, ModelInfo, ModelPage};
use cortex_core::openai::{ModelEntry, ModelList};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Asked;
use super::chunk::Chunk;
use super::stream::Fold;

/// A chat answer as a message: the events that a stream would have had, put together. `None` for what is no chat answer.
pub(crate) fn message(body: &[u8], asked: Asked, request_id: &str) -> Option<Message> {
    let chunk: Chunk = serde_json::from_slice(body).ok()?;
    let mut fold = Fold::new(asked, request_id);
    let mut whole = MessageFold::default();
    fold.chunk(chunk).into_iter().for_each(|event| whole.push(event));
    fold.done().into_iter().for_each(|event| whole.push(event));
    whole.finish()
}

/// The answer of `/tokenize` as that of `count_tokens`. `None` for what is no such answer.
pub(crate) fn token_count(body: &[u8]) -> Option<Value> {
    #[derive(Deserialize)]
    struct Counted {
        count: usize,
    }
    let counted: Counted = serde_json::from_slice(body).ok()?;
    Some(json!({ "input_tokens": counted.count }))
}

/// The catalogue.
pub(crate) fn models(list: ModelList) -> ModelPage {
    ModelPage::new(list.data.into_iter().map(model).collect())
}

/// One model of it.
pub(crate) fn model(entry: ModelEntry) -> ModelInfo {
    ModelInfo::new(entry.id, entry.created)
}
