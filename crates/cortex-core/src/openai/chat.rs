//! `POST /v1/chat/completions`: the request, the streamed chunk, and the whole answer as a fold over chunks.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::fields::{Fields, missing, unsupported, wrong_type, wrong_value};
use super::options::{GenerateOptions, TOP_LOGPROBS_MAX};
use super::tool_call::{ToolCall, ToolCallDelta, ToolCallFold};
use super::{ApiError, CompletionUsage};
use crate::harness::{AnswerFormat, ChatPrompt, FinishReason, TokenChoice, TokenLogprob, ToolChoice};
use crate::model::ModelId;

/// A chat request, checked.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    /// Which model.
    pub model: ModelId,
    /// The conversation.
    pub prompt: ChatPrompt,
    /// How to generate and answer.
    pub options: GenerateOptions,
}

impl ChatRequest {
    /// Reads the fields that are known and ignores the rest; the error names the first field that is wrong.
    pub fn parse(mut fields: Fields) -> Result<Self, ApiError> {
        let model = fields.model()?;
        let prompt = chat_prompt(&mut fields)?;
        let options = GenerateOptions { logprobs: logprobs(&mut fields)?, ..GenerateOptions::take(&mut fields, 1)? };
        Ok(Self { model, prompt, options })
    }
}

/// Takes `messages`, `tools` and the template's options out of `fields`; `/tokenize` reads the same ones.
///
/// `reasoning_effort` reaches the template under its own name, and as `enable_thinking` (false for `none` and `minimal`) unless
/// `chat_template_kwargs` already says so.
pub fn chat_prompt(fields: &mut Fields) -> Result<ChatPrompt, ApiError> {
    let messages = messages(fields)?;
    let continue_final_message = fields.flag("continue_final_message")?.unwrap_or(false);
    let add_generation_prompt = fields.flag("add_generation_prompt")?.unwrap_or(!continue_final_message);
    if continue_final_message && add_generation_prompt {
        let rule = "cannot be true together with `continue_final_message`";
        return Err(wrong_value("add_generation_prompt", rule, &Value::Bool(true)));
    }
    let (tools, tool_choice) = tools(fields)?;
    Ok(ChatPrompt {
        messages,
        tools,
        add_generation_prompt,
        continue_final_message,
        template_kwargs: template_kwargs(fields)?,
        tool_choice,
        one_call_at_most: fields.flag("parallel_tool_calls")? == Some(false),
        format: answer_format(fields)?,
    })
}

fn messages(fields: &mut Fields) -> Result<Vec<Map<String, Value>>, ApiError> {
    let messages = fields.array("messages")?.ok_or_else(|| missing("messages"))?;
    if messages.is_empty() {
        return Err(wrong_value("messages", "must hold at least one message", &Value::Array(messages)));
    }
    messages.into_iter().enumerate().map(|(place, message)| check_message(place, message)).collect()
}

/// Only what every template relies on is checked; the rest of the message stays as it came.
fn check_message(place: usize, message: Value) -> Result<Map<String, Value>, ApiError> {
    let Value::Object(message) = message else {
        return Err(wrong_type(&format!("messages[{place}]"), "an object", &message));
    };
    match message.get("role") {
        None | Some(Value::Null) => return Err(missing(&format!("messages[{place}].role"))),
        Some(Value::String(_)) => {}
        Some(other) => return Err(wrong_type(&format!("messages[{place}].role"), "a string", other)),
    }
    match message.get("content") {
        None | Some(Value::Null | Value::String(_)) => {}
        Some(Value::Array(parts)) => {
            if let Some((part, other)) = parts.iter().enumerate().find(|(_, part)| !part.is_object()) {
                return Err(wrong_type(&format!("messages[{place}].content[{part}]"), "an object", other));
            }
        }
        Some(other) => return Err(wrong_type(&format!("messages[{place}].content"), "a string or an array of parts", other)),
    }
    Ok(message)
}

/// The tools, unless `tool_choice` says `none`.
fn tools(fields: &mut Fields) -> Result<(Option<Vec<Value>>, ToolChoice), ApiError> {
    let tools = fields.array("tools")?.filter(|tools| !tools.is_empty());
    if let Some(other) = tools.iter().flatten().find(|tool| !tool.is_object()) {
        return Err(wrong_type("tools", "an array of objects", other));
    }
    let Some(value) = fields.take("tool_choice") else { return Ok((tools, ToolChoice::Auto)) };
    let choice = match value.as_str() {
        Some("auto") => ToolChoice::Auto,
        Some("none") => return Ok((None, ToolChoice::Auto)),
        // "any" is the word of Mistral's and Anthropic's clients.
        Some("required" | "any") => ToolChoice::Required(Vec::new()),
        Some(_) => return Err(wrong_value("tool_choice", CHOICES, &value)),
        None => named(&value)?,
    };
    let offered: Vec<&str> = tools.iter().flatten().filter_map(function_name).collect();
    match &choice {
        ToolChoice::Required(_) if tools.is_none() => Err(wrong_value("tool_choice", "needs `tools` to choose from", &value)),
        ToolChoice::Required(names) => match names.iter().find(|name| !offered.contains(&name.as_str())) {
            Some(name) => Err(wrong_value("tool_choice", "must name one of `tools`", &Value::from(name.as_str()))),
            None => Ok((tools, choice)),
        },
        ToolChoice::Auto => Ok((tools, choice)),
    }
}

const CHOICES: &str = "must be \"auto\", \"none\", \"required\", or {\"type\": \"function\", \"function\": {\"name\": ..}}";

/// A choice that names functions: one, or some of which any may be called (`allowed_tools`).
fn named(choice: &Value) -> Result<ToolChoice, ApiError> {
    let wrong = || wrong_value("tool_choice", CHOICES, choice);
    if choice["type"] != "allowed_tools" {
        let name = function_name(choice).ok_or_else(wrong)?;
        return Ok(ToolChoice::Required(vec![name.to_owned()]));
    }
    let allowed = choice.get("allowed_tools").unwrap_or(choice);
    let names: Option<Vec<String>> =
        allowed["tools"].as_array().ok_or_else(wrong)?.iter().map(|tool| function_name(tool).map(Into::into)).collect();
    match (allowed["mode"].as_str(), names) {
        (Some("required"), Some(names)) if !names.is_empty() => Ok(ToolChoice::Required(names)),
        (Some("auto"), Some(_)) => {
            Err(unsupported("tool_choice", "`allowed_tools` is kept only in the mode \"required\" here: send fewer `tools` instead."))
        }
        _ => Err(wrong()),
    }
}

/// The name of a tool, or of a choice, in the form of chat or of responses.
fn function_name(tool: &Value) -> Option<&str> {
    tool.get("function").unwrap_or(tool).get("name")?.as_str()
}

fn answer_format(fields: &mut Fields) -> Result<AnswerFormat, ApiError> {
    let Some(mut format) = fields.object("response_format")? else { return Ok(AnswerFormat::Text) };
    match format.get("type").and_then(Value::as_str) {
        None | Some("text") => Ok(AnswerFormat::Text),
        Some("json_object") => Ok(AnswerFormat::JsonObject),
        Some("json_schema") => match format.remove("json_schema").and_then(|mut named| Some(named.get_mut("schema")?.take())) {
            Some(schema) if schema.is_object() || schema.is_boolean() => Ok(AnswerFormat::JsonSchema(schema)),
            Some(other) => Err(wrong_type("response_format.json_schema.schema", "an object", &other)),
            None => Err(missing("response_format.json_schema.schema")),
        },
        Some(other) => {
            Err(wrong_value("response_format.type", "must be \"text\", \"json_object\" or \"json_schema\"", &Value::from(other)))
        }
    }
}

fn template_kwargs(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let mut kwargs = fields.object("chat_template_kwargs")?.unwrap_or_default();
    if let Some(effort) = fields.string("reasoning_effort")? {
        let thinking = !matches!(effort.as_str(), "none" | "minimal");
        kwargs.entry("enable_thinking").or_insert(Value::Bool(thinking));
        kwargs.entry("reasoning_effort").or_insert(Value::String(effort));
    }
    Ok(kwargs)
}

fn logprobs(fields: &mut Fields) -> Result<Option<u8>, ApiError> {
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=TOP_LOGPROBS_MAX)?;
    match (wanted, top) {
        (false, Some(top)) if top > 0 => Err(wrong_value("top_logprobs", "needs `logprobs` to be true", &top.into())),
        (false, _) => Ok(None),
        (true, top) => Ok(Some(top.unwrap_or(0) as u8)),
    }
}

/// One streamed piece of a chat answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatChunk {
    /// The same in all chunks of an answer.
    pub id: Arc<str>,
    /// Always `chat.completion.chunk`.
    #[serde(default)]
    pub object: ChatChunkObject,
    /// Seconds since 1970.
    pub created: u64,
    /// The model, as the request named it.
    pub model: Arc<str>,
    /// What is new; empty in the chunk that tells the usage.
    pub choices: Vec<ChatChunkChoice>,
    /// Only in the last chunk, and only if asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<CompletionUsage>,
}

/// The word in `object`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChatChunkObject {
    /// The only one.
    #[default]
    #[serde(rename = "chat.completion.chunk")]
    ChatCompletionChunk,
}

/// What is new in one choice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatChunkChoice {
    /// Which choice, from 0.
    pub index: u32,
    /// What is new in its message.
    pub delta: ChatDelta,
    /// The log-probabilities of the delta's tokens, if asked for.
    #[serde(default)]
    pub logprobs: Option<ChatLogprobs>,
    /// Set in the choice's last chunk.
    #[serde(default)]
    pub finish_reason: Option<FinishReason>,
    /// The stop text that ended it, if one did; vLLM has this field, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<String>,
}

/// What is new in a message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatDelta {
    /// Only in the first delta.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// More of the answer's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// More of what the model thinks before it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// More of its calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

/// Some servers write `null` for no calls.
fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(json: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(json)?.unwrap_or_default())
}

/// Who speaks in an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The model.
    #[default]
    Assistant,
}

/// Log-probabilities in the chat dialect.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatLogprobs {
    /// One entry per token.
    pub content: Vec<ChatTokenLogprob>,
}

/// A token with its log-probability and the alternatives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatTokenLogprob {
    /// The token that was chosen.
    #[serde(flatten)]
    pub chosen: ChatTokenChoice,
    /// The most probable tokens at its place, best first.
    pub top_logprobs: Vec<ChatTokenChoice>,
}

/// A token with its log-probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatTokenChoice {
    /// Its text.
    pub token: String,
    /// ln p.
    pub logprob: f32,
    /// Its bytes, from which text can be put together where one character spans tokens.
    pub bytes: Vec<u8>,
}

impl From<TokenLogprob> for ChatTokenLogprob {
    fn from(token: TokenLogprob) -> Self {
        Self { chosen: token.chosen.into(), top_logprobs: token.top.into_iter().map(Into::into).collect() }
    }
}

impl From<TokenChoice> for ChatTokenChoice {
    fn from(choice: TokenChoice) -> Self {
        Self { logprob: choice.finite_logprob(), token: choice.text, bytes: choice.bytes }
    }
}

/// A whole chat answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatCompletion {
    /// Names the answer.
    pub id: Arc<str>,
    /// Always `chat.completion`.
    #[serde(default)]
    pub object: ChatCompletionObject,
    /// Seconds since 1970.
    pub created: u64,
    /// The model, as the request named it.
    pub model: Arc<str>,
    /// The answers, `n` of them.
    pub choices: Vec<ChatChoice>,
    /// What was counted.
    pub usage: CompletionUsage,
}

/// The word in `object`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChatCompletionObject {
    /// The only one.
    #[default]
    #[serde(rename = "chat.completion")]
    ChatCompletion,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatChoice {
    /// Which choice, from 0.
    pub index: u32,
    /// What the model said.
    pub message: ChatMessage,
    /// Log-probabilities, if asked for.
    #[serde(default)]
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// The stop text that ended it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<String>,
}

/// What the model said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// Always the assistant.
    pub role: Role,
    /// The text; null when there is none because the model only thought or called.
    pub content: Option<String>,
    /// What the model thought before it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Always null: nothing here refuses.
    #[serde(default)]
    pub refusal: Option<String>,
}

/// Puts chunks together into the answer that they would have been without streaming.
#[derive(Debug, Default)]
pub struct ChatFold {
    head: Option<(Arc<str>, u64, Arc<str>)>,
    choices: Vec<ChoiceFold>,
    usage: CompletionUsage,
}

/// One choice so far.
#[derive(Debug, Default)]
struct ChoiceFold {
    index: u32,
    content: Option<String>,
    reasoning: Option<String>,
    calls: ToolCallFold,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<FinishReason>,
    stop_reason: Option<String>,
}

impl ChatFold {
    /// Adds the next chunk.
    pub fn push(&mut self, chunk: ChatChunk) {
        self.head.get_or_insert((chunk.id, chunk.created, chunk.model));
        self.usage = chunk.usage.unwrap_or(self.usage);
        for choice in chunk.choices {
            let place = self.choices.iter().position(|known| known.index == choice.index).unwrap_or_else(|| {
                self.choices.push(ChoiceFold { index: choice.index, ..Default::default() });
                self.choices.len() - 1
            });
            self.choices[place].push(choice);
        }
    }

    /// The answer; `None` when the stream ended before every choice had its finish reason.
    pub fn finish(mut self) -> Option<ChatCompletion> {
        let (id, created, model) = self.head?;
        self.choices.sort_by_key(|choice| choice.index);
        let choices = self.choices.into_iter().map(ChoiceFold::finish).collect::<Option<_>>()?;
        Some(ChatCompletion { id, object: ChatCompletionObject::default(), created, model, choices, usage: self.usage })
    }
}

impl ChoiceFold {
    fn push(&mut self, choice: ChatChunkChoice) {
        let ChatDelta { role: _, content, reasoning_content, tool_calls } = choice.delta;
        append(&mut self.content, content);
        append(&mut self.reasoning, reasoning_content);
        tool_calls.into_iter().for_each(|call| self.calls.push(call));
        if let Some(logprobs) = choice.logprobs {
            self.logprobs.get_or_insert_default().content.extend(logprobs.content);
        }
        self.finish_reason = choice.finish_reason.or(self.finish_reason);
        self.stop_reason = choice.stop_reason.or(self.stop_reason.take());
    }

    fn finish(self) -> Option<ChatChoice> {
        let (reasoning_content, tool_calls) = (self.reasoning, self.calls.finish());
        let said_otherwise = reasoning_content.is_some() || !tool_calls.is_empty();
        let content = self.content.filter(|text| !(text.is_empty() && said_otherwise));
        let message = ChatMessage { role: Role::Assistant, content, reasoning_content, tool_calls, refusal: None };
        Some(ChatChoice {
            index: self.index,
            message,
            logprobs: self.logprobs,
            finish_reason: self.finish_reason?,
            stop_reason: self.stop_reason,
        })
    }
}

fn append(whole: &mut Option<String>, more: Option<String>) {
    if let Some(more) = more {
        whole.get_or_insert_default().push_str(&more);
    }
}
