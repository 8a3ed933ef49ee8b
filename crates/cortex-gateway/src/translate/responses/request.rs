//! A Responses request as the chat request that a node understands.

use bytes::Bytes;
use cortex_core::openai::ApiError;
use cortex_core::openai::fields::{Fields, missing, unsupported, wrong_type, wrong_value};
use serde_json::{Map, Value, json};

use super::namespace::{self, Namespaces};

/// A translated request.
#[derive(Clone, Debug)]
pub(crate) struct Chat {
    /// The body of `/v1/chat/completions`.
    pub(crate) body: Bytes,
    pub(crate) echo: Echo,
}

/// What an answer says again of its request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Echo {
    pub(crate) model: String,
    pub(crate) fields: Map<String, Value>,
    /// What calls are called.
    pub(crate) namespaces: Namespaces,
}

type Absent = fn() -> Value;

/// Fields that an answer says again, and what they are where the request does not say.
const ECHOED: [(&str, Absent); 12] = [
    ("instructions", || Value::Null),
    ("max_output_tokens", || Value::Null),
    ("metadata", || json!({})),
    ("parallel_tool_calls", || json!(true)),
    ("reasoning", || json!({ "effort": null, "summary": null })),
    ("temperature", || json!(1.0)),
    ("text", || json!({ "format": { "type": "text" } })),
    ("tool_choice", || json!("auto")),
    ("tools", || json!([])),
    ("top_p", || json!(1.0)),
    ("truncation", || json!("disabled")),
    ("user", || Value::Null),
];

/// Fields that mean the same in both dialects.
const SHARED: [&str; 17] = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "service_tier",
    "user",
    "prompt_cache_key",
    "logit_bias",
    "parallel_tool_calls",
    "chat_template_kwargs",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
];

/// For an answer in this dialect.
///
/// # Errors
/// The field at fault.
pub(crate) fn responses(body: &[u8]) -> Result<Chat, ApiError> {
    let mut fields = Fields::parse(body)?;
    let said = serde_json::from_slice::<Map<String, Value>>(body).unwrap_or_default();
    let echoed =
        ECHOED.map(|(name, absent)| (name.to_owned(), said.get(name).filter(|value| !value.is_null()).cloned().unwrap_or_else(absent)));
    let mut chat = chat(&mut fields)?;
    if chat.get("stream") == Some(&Value::Bool(true)) {
        chat.insert("stream_options".into(), json!({ "include_usage": true }));
    }
    let model = chat["model"].as_str().unwrap_or_default().to_owned();
    let namespaces = Namespaces::of(said.get("tools").and_then(Value::as_array).map_or(&[], Vec::as_slice));
    Ok(Chat { body: Value::Object(chat).to_string().into(), echo: Echo { model, fields: echoed.into_iter().collect(), namespaces } })
}

/// The body of a chat request: some clients send the fields of this dialect to the path of the other.
///
/// # Errors
/// The field at fault.
pub(crate) fn as_chat(body: Bytes) -> Result<Bytes, ApiError> {
    let has = |name: &[u8]| body.windows(name.len()).any(|window| window == name);
    if has(b"\"messages\"") || !has(b"\"input\"") {
        return Ok(body);
    }
    Ok(Value::Object(chat(&mut Fields::parse(&body)?)?).to_string().into())
}

fn chat(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    refuse_stateful(fields)?;
    let mut chat = Map::new();
    chat.insert("model".into(), fields.model()?.as_str().into());
    let mut turns = Turns::default();
    if let Some(text) = fields.string("instructions")? {
        turns.instruction(&Value::String(text), "instructions")?;
    }
    turns.input(fields.take("input").ok_or_else(|| missing("input"))?)?;
    chat.insert("messages".into(), turns.finish()?.into());
    for (name, there) in [("max_output_tokens", "max_tokens"), ("max_tokens", "max_tokens"), ("max_completion_tokens", "max_tokens")] {
        if let Some(value) = fields.integer(name, 1..=i64::MAX)? {
            chat.insert(there.into(), value.into());
        }
    }
    if let Some(effort) =
        fields.object("reasoning")?.and_then(|mut reasoning| reasoning.remove("effort")).filter(|effort| !effort.is_null())
    {
        chat.insert("reasoning_effort".into(), effort);
    }
    if let Some(format) = fields.object("text")?.and_then(|mut text| text.remove("format")).filter(|format| !format.is_null()) {
        chat.insert("response_format".into(), response_format(format)?);
    }
    let tools: Vec<Value> = fields.array("tools")?.unwrap_or_default().iter().flat_map(functions).collect();
    if !tools.is_empty() {
        chat.insert("tools".into(), tools.into());
        if let Some(choice) = fields.take("tool_choice") {
            chat.insert("tool_choice".into(), choice);
        }
    }
    for name in SHARED {
        if let Some(value) = fields.take(name) {
            chat.insert(name.into(), value);
        }
    }
    Ok(chat)
}

/// What would need a memory between requests.
fn refuse_stateful(fields: &mut Fields) -> Result<(), ApiError> {
    for (name, instead) in [
        ("previous_response_id", "send the whole conversation in `input`"),
        ("conversation", "send the whole conversation in `input`"),
        ("prompt", "send its text in `instructions`"),
    ] {
        if fields.take(name).is_some() {
            return Err(unsupported(
                name,
                &format!("`{name}` needs an answer or text that was stored, and nothing is stored here: {instead}."),
            ));
        }
    }
    if fields.flag("background")? == Some(true) {
        return Err(unsupported("background", "`background` needs an answer that is stored, and nothing is stored here: use `stream`."));
    }
    Ok(())
}

/// A format stands flat here, and one level deeper in chat.
fn response_format(format: Value) -> Result<Value, ApiError> {
    let Value::Object(mut named) = format else { return Err(wrong_type("text.format", "an object", &format)) };
    if named.get("type").and_then(Value::as_str) != Some("json_schema") {
        return Ok(Value::Object(named));
    }
    named.remove("type");
    if !named.contains_key("schema") {
        return Err(missing("text.format.schema"));
    }
    Ok(json!({ "type": "json_schema", "json_schema": named }))
}

fn functions(tool: &Value) -> Vec<Value> {
    namespace::flattened(tool).unwrap_or_else(|| vec![tool.clone()]).iter().filter_map(function).collect()
}

/// Tools that are no functions run on OpenAI's servers or in the client; a model here cannot know them.
fn function(tool: &Value) -> Option<Value> {
    if tool["type"] != "function" {
        return None;
    }
    if tool.get("function").is_some() {
        return Some(tool.clone());
    }
    let mut function = tool.as_object()?.clone();
    // In the order they came: the model reads them.
    function.retain(|name, value| name != "type" && !value.is_null());
    Some(json!({ "type": "function", "function": function }))
}

/// The messages so far, in chat's words.
#[derive(Default)]
struct Turns {
    messages: Vec<Value>,
    /// A thought whose message or call is still to come.
    thought: Option<String>,
}

impl Turns {
    fn input(&mut self, input: Value) -> Result<(), ApiError> {
        match input {
            Value::String(text) => {
                self.messages.push(json!({ "role": "user", "content": text }));
                Ok(())
            }
            Value::Array(items) => items.iter().enumerate().try_for_each(|(i, item)| self.item(item, &format!("input[{i}]"))),
            other => Err(wrong_type("input", "a string or an array of items", &other)),
        }
    }

    fn finish(self) -> Result<Vec<Value>, ApiError> {
        if self.messages.is_empty() {
            return Err(wrong_value("input", "must hold at least one message", &Value::Array(Vec::new())));
        }
        Ok(self.messages)
    }

    /// Items of kinds that are not known are left out: they belong to tools of servers.
    fn item(&mut self, item: &Value, place: &str) -> Result<(), ApiError> {
        if !item.is_object() {
            return Err(wrong_type(place, "an object", item));
        }
        match item["type"].as_str() {
            None | Some("message") => self.message(item, place),
            Some("reasoning") => {
                self.think(item);
                Ok(())
            }
            Some("function_call") => self.call(item, "arguments", place),
            Some("custom_tool_call") => self.call(item, "input", place),
            Some("function_call_output" | "custom_tool_call_output") => self.result(item, place),
            Some("item_reference") => {
                Err(unsupported(place, "`item_reference` needs an item that was stored, and nothing is stored here: send the item itself."))
            }
            Some(_) => Ok(()),
        }
    }

    fn message(&mut self, item: &Value, place: &str) -> Result<(), ApiError> {
        let content = content(&item["content"], &format!("{place}.content"))?;
        match item["role"].as_str() {
            Some("user") => {
                // A thought that came to nothing belongs to no later message.
                self.thought = None;
                self.messages.push(json!({ "role": "user", "content": content }));
            }
            Some("system" | "developer") => self.instruction(&content, place)?,
            Some("assistant") => {
                let message = self.assistant();
                let text = [message["content"].as_str().unwrap_or_default(), content.as_str().unwrap_or_default()];
                message["content"] = text.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n").into();
            }
            _ => {
                return Err(wrong_value(
                    &format!("{place}.role"),
                    "must be \"user\", \"assistant\", \"system\" or \"developer\"",
                    &item["role"],
                ));
            }
        }
        Ok(())
    }

    /// Most templates know a system message only at the head, and one of them. Later ones stay where they stand, as the user's words: moving
    /// them to the front would change the prompt's beginning, and nothing of it could be found in a cache.
    fn instruction(&mut self, content: &Value, place: &str) -> Result<(), ApiError> {
        let Some(text) = content.as_str() else { return Err(wrong_type(place, "text", content)) };
        match self.messages.as_mut_slice() {
            _ if text.is_empty() => {}
            [] => self.messages.push(json!({ "role": "system", "content": text })),
            [head] if head["role"] == "system" => {
                head["content"] = format!("{}\n{text}", head["content"].as_str().unwrap_or_default()).into();
            }
            _ => self.messages.push(json!({ "role": "user", "content": text })),
        }
        Ok(())
    }

    fn think(&mut self, item: &Value) {
        let texts = ["content", "summary"].into_iter().flat_map(|name| item[name].as_array().into_iter().flatten());
        let text = texts.filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n");
        self.thought = Some(text).filter(|text| !text.is_empty());
    }

    /// The assistant's message under way; one begins where somebody else spoke last.
    fn assistant(&mut self) -> &mut Value {
        if self.messages.last().is_none_or(|last| last["role"] != "assistant") || self.thought.is_some() {
            let mut message = json!({ "role": "assistant", "content": "" });
            if let Some(thought) = self.thought.take() {
                message["reasoning_content"] = thought.into();
            }
            self.messages.push(message);
        }
        let last = self.messages.len() - 1;
        &mut self.messages[last]
    }

    fn call(&mut self, item: &Value, input: &str, place: &str) -> Result<(), ApiError> {
        let text = |name: &str| item[name].as_str().ok_or_else(|| missing(&format!("{place}.{name}")));
        let (id, name, said) = (text("call_id")?, text("name")?, text(input)?);
        let name = item["namespace"].as_str().map_or_else(|| name.to_owned(), |space| namespace::joined(space, name));
        let arguments = if input == "input" { json!({ "input": said }).to_string() } else { said.to_owned() };
        let call = json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } });
        let message = self.assistant();
        match message["tool_calls"].as_array_mut() {
            Some(calls) => calls.push(call),
            None => message["tool_calls"] = json!([call]),
        }
        Ok(())
    }

    fn result(&mut self, item: &Value, place: &str) -> Result<(), ApiError> {
        let id = item["call_id"].as_str().ok_or_else(|| missing(&format!("{place}.call_id")))?;
        let content = content(&item["output"], &format!("{place}.output"))?;
        self.messages.push(json!({ "role": "tool", "tool_call_id": id, "content": content }));
        Ok(())
    }
}

/// Words alone become one text, line by line; with pictures, parts.
fn content(content: &Value, place: &str) -> Result<Value, ApiError> {
    let parts = match content {
        Value::Null => return Ok("".into()),
        Value::String(_) => return Ok(content.clone()),
        Value::Array(parts) => parts,
        other => return Err(wrong_type(place, "a string or an array of parts", other)),
    };
    let parts: Vec<Value> = parts
        .iter()
        .enumerate()
        .filter_map(|(i, part)| self::part(part, &format!("{place}[{i}]")).transpose())
        .collect::<Result<_, _>>()?;
    let texts: Option<Vec<&str>> = parts.iter().map(|part| part["text"].as_str()).collect();
    Ok(match texts {
        Some(texts) => texts.join("\n").into(),
        None => parts.into(),
    })
}

fn part(part: &Value, place: &str) -> Result<Option<Value>, ApiError> {
    match part["type"].as_str() {
        Some("input_text" | "output_text" | "text" | "summary_text" | "reasoning_text") => {
            let text = part["text"].as_str().ok_or_else(|| missing(&format!("{place}.text")))?;
            Ok(Some(json!({ "type": "text", "text": text })))
        }
        Some("refusal") => Ok(part["refusal"].as_str().map(|text| json!({ "type": "text", "text": text }))),
        Some("input_image" | "image_url") => {
            let url = part["image_url"].as_str().or_else(|| part["image_url"]["url"].as_str()).ok_or_else(|| {
                unsupported(place, "a picture must come with its `image_url`, a data: or http(s) address: files are not stored here.")
            })?;
            let mut image = json!({ "url": url });
            if let Some(detail) = part.get("detail").filter(|detail| !detail.is_null()) {
                image["detail"] = detail.clone();
            }
            Ok(Some(json!({ "type": "image_url", "image_url": image })))
        }
        Some(kind @ ("input_file" | "input_audio")) => {
            Err(unsupported(place, &format!("`{kind}` parts are not supported; send text and pictures.")))
        }
        _ => Ok(None),
    }
}
