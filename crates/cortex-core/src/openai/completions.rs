//! `POST /v1/completions`: the request, and an answer whose streamed chunk has the same shape as the whole.

use std::sync::Arc;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fields::{Fields, missing, unsupported, wrong_type, wrong_value};
use super::options::{GenerateOptions, TOP_LOGPROBS_MAX};
use super::{ApiError, CompletionUsage};
use crate::harness::{FinishReason, Prompt, TokenLogprob};
use crate::model::ModelId;

/// Most prompts of one completion request.
pub const PROMPTS_MAX: usize = 128;

const NO_LOGPROBS_OF_A_GAP: &str =
    "`echo` with `logprobs` tells of the tokens of a whole prompt, which one with a `suffix` is not: leave one of the three out.";

/// A completion request, checked.
#[derive(Clone, Debug)]
pub struct CompletionRequest {
    /// Which model.
    pub model: ModelId,
    /// At least one; prompt `p`'s choice `i` is choice `p * n + i` of the answer.
    pub prompts: Vec<Prompt>,
    /// Each answer begins with its prompt.
    pub echo: bool,
    /// How to generate and answer.
    pub options: GenerateOptions,
}

impl CompletionRequest {
    /// Reads the fields that are known and ignores the rest; the error names the first field that is wrong.
    pub fn parse(mut fields: Fields) -> Result<Self, ApiError> {
        let model = fields.model()?;
        let prompt = fields.take("prompt").ok_or_else(|| missing("prompt"))?;
        let suffix = fields.string("suffix")?.filter(|suffix| !suffix.is_empty());
        let prompts = prompts("prompt", prompt, PROMPTS_MAX)?.into_iter().map(|prompt| before(prompt, suffix.as_deref()));
        let prompts = prompts.collect::<Result<_, _>>()?;
        let logprobs = fields.integer("logprobs", 0..=TOP_LOGPROBS_MAX)?.map(|top| top as u8);
        let echo = fields.flag("echo")?.unwrap_or(false);
        let prompt_logprobs = echo && logprobs.is_some();
        let options = GenerateOptions { logprobs, prompt_logprobs, ..GenerateOptions::take(&mut fields, 0)? };
        refuse_unsupported(&mut fields, &options)?;
        if prompt_logprobs && suffix.is_some() {
            return Err(unsupported("echo", NO_LOGPROBS_OF_A_GAP));
        }
        Ok(Self { model, prompts, echo, options })
    }
}

/// Text, token ids, or an array of either; `param` is the field they came in.
pub fn prompts(param: &str, value: Value, prompts_max: usize) -> Result<Vec<Prompt>, ApiError> {
    const EXPECTED: &str = "a string, an array of strings, an array of token ids, or an array of those";
    let items = match value {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(items) => items,
        other => return Err(wrong_type(param, EXPECTED, &other)),
    };
    if items.is_empty() {
        return Err(wrong_value(param, "must not be empty", &Value::Array(items)));
    }
    if items.iter().all(Value::is_number) {
        return Ok(vec![Prompt::Tokens(token_ids(param, &items)?)]);
    }
    if items.len() > prompts_max {
        return Err(wrong_value(param, &format!("must hold at most {prompts_max} entries"), &items.len().into()));
    }
    items
        .into_iter()
        .map(|item| match item {
            Value::String(text) => Ok(Prompt::Text(text)),
            Value::Array(ids) if !ids.is_empty() => Ok(Prompt::Tokens(token_ids(param, &ids)?)),
            other => Err(wrong_type(param, EXPECTED, &other)),
        })
        .collect()
}

/// Token ids out of a JSON array.
pub fn token_ids(param: &str, items: &[Value]) -> Result<Vec<u32>, ApiError> {
    let id =
        |item: &Value| item.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| wrong_type(param, "an array of token ids", item));
    items.iter().map(id).collect()
}

/// The prompt that asks for what comes before `suffix`.
fn before(prompt: Prompt, suffix: Option<&str>) -> Result<Prompt, ApiError> {
    match (prompt, suffix) {
        (prompt, None) => Ok(prompt),
        (Prompt::Text(prefix), Some(suffix)) => Ok(Prompt::Infill { prefix, suffix: suffix.into() }),
        (_, Some(_)) => Err(unsupported(
            "suffix",
            "`suffix` needs a `prompt` that is text: into token ids, write the model's own fill-in-the-middle tokens.",
        )),
    }
}

fn refuse_unsupported(fields: &mut Fields, options: &GenerateOptions) -> Result<(), ApiError> {
    match fields.integer("best_of", 1..=i64::MAX)? {
        Some(best_of) if best_of > i64::from(options.n) => {
            Err(unsupported("best_of", "`best_of` above `n` is not supported here: ask for `n` answers and choose among them."))
        }
        _ => Ok(()),
    }
}

/// An answer, or one streamed piece of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// The same in all chunks of an answer.
    pub id: Arc<str>,
    /// Always `text_completion`.
    #[serde(default)]
    pub object: CompletionObject,
    /// Seconds since 1970.
    pub created: u64,
    /// The model, as the request named it.
    pub model: Arc<str>,
    /// The answers, or what is new in them.
    pub choices: Vec<CompletionChoice>,
    /// In a whole answer always; in a stream only in the last chunk, and only if asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<CompletionUsage>,
}

/// The word in `object`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompletionObject {
    /// The only one.
    #[default]
    #[serde(rename = "text_completion")]
    TextCompletion,
}

/// One answer, or what is new in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CompletionChoice {
    /// Which choice, from 0.
    pub index: u32,
    /// Its text.
    pub text: String,
    /// Log-probabilities, if asked for.
    #[serde(default)]
    pub logprobs: Option<CompletionLogprobs>,
    /// Why it ended; null in all chunks but the choice's last.
    #[serde(default)]
    pub finish_reason: Option<FinishReason>,
    /// The stop text that ended it, if one did; vLLM has this field, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<String>,
}

/// Log-probabilities in the completion dialect: parallel arrays with one entry per token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CompletionLogprobs {
    /// Where each token's text starts in the answer, in characters.
    pub text_offset: Vec<u32>,
    /// ln p of each token; null for the first of a prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// The text of each token.
    pub tokens: Vec<String>,
    /// The alternatives at each place, best first, and the token itself if it is not among them; null for the first of a prompt.
    pub top_logprobs: Vec<Option<IndexMap<String, f32>>>,
}

impl CompletionLogprobs {
    /// Adds a token whose text starts at character `text_offset` of the answer; gives where the next one starts.
    pub fn push(&mut self, token: TokenLogprob, text_offset: u32) -> u32 {
        let next = text_offset.saturating_add(token.chosen.text.chars().count() as u32);
        let logprob = token.chosen.finite_logprob();
        // Tokens that are no characters on their own may have one text: the most probable of them stands for all.
        let mut top = IndexMap::with_capacity(token.top.len() + 1);
        for choice in token.top {
            let logprob = choice.finite_logprob();
            top.entry(choice.text).or_insert(logprob);
        }
        top.entry(token.chosen.text.clone()).or_insert(logprob);
        self.text_offset.push(text_offset);
        self.token_logprobs.push(Some(logprob));
        self.top_logprobs.push(Some(top));
        self.tokens.push(token.chosen.text);
        next
    }

    /// Adds the first token of a prompt, which nothing foretells.
    pub fn push_first(&mut self, token: String) {
        self.text_offset.push(0);
        self.token_logprobs.push(None);
        self.top_logprobs.push(None);
        self.tokens.push(token);
    }

    fn extend(&mut self, more: Self) {
        self.text_offset.extend(more.text_offset);
        self.token_logprobs.extend(more.token_logprobs);
        self.tokens.extend(more.tokens);
        self.top_logprobs.extend(more.top_logprobs);
    }
}

/// Puts chunks together into the answer that they would have been without streaming.
#[derive(Debug, Default)]
pub struct CompletionFold {
    whole: Option<Completion>,
}

impl CompletionFold {
    /// Adds the next chunk.
    pub fn push(&mut self, chunk: Completion) {
        let Some(whole) = &mut self.whole else {
            self.whole = Some(chunk);
            return;
        };
        whole.usage = chunk.usage.or(whole.usage);
        for choice in chunk.choices {
            match whole.choices.iter_mut().find(|known| known.index == choice.index) {
                Some(known) => known.extend(choice),
                None => whole.choices.push(choice),
            }
        }
    }

    /// The answer; `None` when the stream ended before every choice had its finish reason.
    pub fn finish(self) -> Option<Completion> {
        let mut whole = self.whole?;
        whole.choices.sort_by_key(|choice| choice.index);
        whole.choices.iter().all(|choice| choice.finish_reason.is_some()).then_some(whole)
    }
}

impl CompletionChoice {
    fn extend(&mut self, more: Self) {
        self.text.push_str(&more.text);
        if let Some(logprobs) = more.logprobs {
            self.logprobs.get_or_insert_default().extend(logprobs);
        }
        self.finish_reason = more.finish_reason.or(self.finish_reason);
        self.stop_reason = more.stop_reason.or(self.stop_reason.take());
    }
}
