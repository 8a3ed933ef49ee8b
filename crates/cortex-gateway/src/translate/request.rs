//! An Anthropic request as the chat request that a node understands.

use bytes::Bytes;
use cortex_core::anthropic::{Block, ImageSource, MessagesRequest, RequestError, Role, Thinking, Tool, ToolChoice};
use serde_json::{Value, json};

use super::python_json;

/// What a client writes at the head of its system prompt for its own servers.
const BILLING_HEADER: &str = "x-anthropic-billing-header:";

/// A translated request.
#[derive(Clone, Debug)]
pub(crate) struct Chat {
    /// The body of `/v1/chat/completions`; `/tokenize` reads the same one.
    pub(crate) body: Bytes,
    pub(crate) asked: Asked,
}

/// What the way back needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// The model, as the client named it.
    pub(crate) model: String,
    /// The client marks what should be cached, and so adds cached tokens to `input_tokens` by itself.
    pub(crate) marks_cache: bool,
}

/// For an answer.
///
/// # Errors
/// The field at fault.
pub(crate) fn messages(body: &[u8], keep_billing_header: bool) -> Result<Chat, RequestError> {
    let request = MessagesRequest::parse(body)?;
    let max_tokens = request.answer_tokens_max()?;
    let mut chat = conversation(&request, keep_billing_header);
    chat["max_tokens"] = max_tokens.into();
    chat["stream"] = request.stream.into();
    if request.stream {
        chat["stream_options"] = json!({ "include_usage": true, "prompt_usage": true });
    }
    if !request.stop_sequences.is_empty() {
        chat["stop"] = json!(request.stop_sequences);
    }
    let options = [
        ("temperature", request.temperature.map(Value::from)),
        ("top_p", request.top_p.map(Value::from)),
        ("top_k", request.top_k.map(Value::from)),
    ];
    options.into_iter().filter_map(|(name, value)| Some((name, value?))).for_each(|(name, value)| chat[name] = value);
    Ok(finished(request, &chat))
}

/// For a count of the same prompt's tokens.
///
/// # Errors
/// The field at fault.
pub(crate) fn count_tokens(body: &[u8], keep_billing_header: bool) -> Result<Chat, RequestError> {
    let request = MessagesRequest::parse(body)?;
    let chat = conversation(&request, keep_billing_header);
    Ok(finished(request, &chat))
}

fn finished(request: MessagesRequest, chat: &Value) -> Chat {
    Chat { body: chat.to_string().into(), asked: Asked { model: request.model, marks_cache: request.marks_cache } }
}

/// Everything that the prompt is made of, and so everything that is counted.
fn conversation(request: &MessagesRequest, keep_billing_header: bool) -> Value {
    let mut turns = Turns::default();
    let billing = request.system.first().filter(|text| !keep_billing_header && text.starts_with(BILLING_HEADER));
    let system = &request.system[usize::from(billing.is_some())..];
    turns.system(system.iter().map(String::as_str));
    for turn in &request.turns {
        match turn.role {
            Role::User => turns.user(&turn.content),
            Role::Assistant => turns.assistant(&turn.content),
            Role::System => turns.instruction(&turn.content),
        }
    }
    // Unless it is asked to, a model of this dialect does not think.
    let thinks = request.thinking == Some(Thinking::Enabled);
    let mut chat = json!({ "model": request.model });
    if turns.ends_in_prefill() {
        chat["continue_final_message"] = true.into();
    }
    chat["messages"] = turns.0.into();
    chat["chat_template_kwargs"] = json!({ "enable_thinking": thinks });
    if !request.tools.is_empty() {
        chat["tools"] = request.tools.iter().map(function).collect();
        if let Some(choice) = &request.tool_choice {
            chat["tool_choice"] = tool_choice(choice);
        }
        if request.one_call_at_most {
            chat["parallel_tool_calls"] = false.into();
        }
    }
    chat
}

fn function(tool: &Tool) -> Value {
    let mut function = json!({ "name": tool.name });
    if let Some(description) = &tool.description {
        function["description"] = description.as_str().into();
    }
    function["parameters"] = tool.input_schema.clone();
    json!({ "type": "function", "function": function })
}

fn tool_choice(choice: &ToolChoice) -> Value {
    match choice {
        ToolChoice::Auto => "auto".into(),
        ToolChoice::Any => "required".into(),
        ToolChoice::None => "none".into(),
        ToolChoice::Tool(name) => json!({ "type": "function", "function": { "name": name } }),
    }
}

/// The messages so far, in OpenAI's words.
#[derive(Default)]
struct Turns(Vec<Value>);

impl Turns {
    fn system<'a>(&mut self, texts: impl Iterator<Item = &'a str>) {
        let text = texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n");
        if !text.is_empty() {
            self.0.push(json!({ "role": "system", "content": text }));
        }
    }

    /// Stays where it stands, as the user's words, since most templates know a system message only at the head. At the head it is one.
    fn instruction(&mut self, content: &[Block]) {
        match self.0.as_mut_slice() {
            [] => self.system(content.iter().filter_map(text)),
            [head] if head["role"] == "system" => extend(head, content.iter().filter_map(text).map(text_part).collect()),
            _ => self.user(content),
        }
    }

    /// Results of tools become messages of their own; words and pictures of turns that follow each other are one message.
    fn user(&mut self, content: &[Block]) {
        let mut said = Vec::new();
        for block in content {
            match block {
                Block::Text(text) => said.push(text_part(text)),
                Block::Image(source) => said.push(image_part(source)),
                Block::ToolResult { tool_use_id, content } => {
                    self.said(std::mem::take(&mut said));
                    let parts = content.iter().filter_map(part).collect();
                    self.0.push(json!({ "role": "tool", "tool_call_id": tool_use_id, "content": compact(parts) }));
                }
                Block::Thinking(_) | Block::ToolUse { .. } => {}
            }
        }
        self.said(said);
    }

    fn said(&mut self, parts: Vec<Value>) {
        match self.0.last_mut() {
            _ if parts.is_empty() => {}
            Some(last) if last["role"] == "user" => extend(last, parts),
            _ => self.0.push(json!({ "role": "user", "content": compact(parts) })),
        }
    }

    fn assistant(&mut self, content: &[Block]) {
        let texts: Vec<&str> = content.iter().filter_map(text).filter(|text| !text.is_empty()).collect();
        let thoughts = content.iter().filter_map(|block| if let Block::Thinking(text) = block { Some(text.as_str()) } else { None });
        let thoughts = thoughts.collect::<Vec<_>>().join("\n");
        let mut message = json!({ "role": "assistant", "content": texts.join("\n") });
        if !thoughts.is_empty() {
            message["reasoning_content"] = thoughts.into();
        }
        let calls: Vec<Value> = content.iter().filter_map(call).collect();
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        self.0.push(message);
    }

    /// The client has begun the answer itself: the model goes on with it.
    fn ends_in_prefill(&self) -> bool {
        self.0.last().is_some_and(|last| last["role"] == "assistant" && last.get("tool_calls").is_none() && last["content"] != "")
    }
}

fn text(block: &Block) -> Option<&str> {
    if let Block::Text(text) = block { Some(text) } else { None }
}

fn call(block: &Block) -> Option<Value> {
    let Block::ToolUse { id, name, input } = block else { return None };
    Some(json!({ "id": id, "type": "function", "function": { "name": name, "arguments": python_json::text(input) } }))
}

fn part(block: &Block) -> Option<Value> {
    match block {
        Block::Text(text) => Some(text_part(text)),
        Block::Image(source) => Some(image_part(source)),
        _ => None,
    }
}

fn text_part(text: &str) -> Value {
    json!({ "type": "text", "text": text })
}

fn image_part(source: &ImageSource) -> Value {
    let url = match source {
        ImageSource::Base64 { media_type, data } => format!("data:{media_type};base64,{data}"),
        ImageSource::Url(url) => url.clone(),
    };
    json!({ "type": "image_url", "image_url": { "url": url } })
}

/// Words alone are one string, line by line: many templates read nothing else.
fn compact(parts: Vec<Value>) -> Value {
    let texts: Option<Vec<&str>> = parts.iter().map(|part| part["text"].as_str()).collect();
    match texts {
        Some(texts) => texts.join("\n").into(),
        None => parts.into(),
    }
}

fn extend(message: &mut Value, more: Vec<Value>) {
    let mut parts = match message["content"].take() {
        Value::Array(parts) => parts,
        content => vec![text_part(content.as_str().unwrap_or_default())],
    };
    parts.extend(more);
    message["content"] = compact(parts);
}
