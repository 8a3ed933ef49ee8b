//! What the mock says. Its tokenizer takes each character for a token.

use cortex_core::harness::TokenChoice;
use cortex_core::{ChatPrompt, Prompt, TokenLogprob};
use serde_json::Value;

/// What a mock model says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The text of the last message (or the prompt), word by word.
    Echo,
    /// These tokens.
    Tokens(Vec<String>),
    /// These tokens and calls.
    Said(Vec<Said>),
    /// To a conversation with tools, these one after the other: which, the calls so far tell; the last one again and again. To one without,
    /// the last one.
    Turns(Vec<Vec<Said>>),
}

/// One thing that a mock model says; it counts as one token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Text of the answer.
    Text(String),
    /// A thought.
    Reasoning(String),
    /// A call of a tool.
    ToolCall {
        /// The function.
        name: String,
        /// A JSON object as text.
        arguments: String,
    },
}

impl Said {
    /// The text that a stop text can stand in.
    pub(super) fn text(&mut self) -> Option<&mut String> {
        match self {
            Self::Text(text) => Some(text),
            Self::Reasoning(_) | Self::ToolCall { .. } => None,
        }
    }
}

impl Answer {
    /// The tokens of the answer to `prompt`.
    pub(super) fn tokens(&self, prompt: &Prompt) -> Vec<Said> {
        let text = |tokens: Vec<String>| tokens.into_iter().map(Said::Text).collect();
        match (self, prompt) {
            (Self::Said(said), _) => said.clone(),
            (Self::Turns(turns), prompt) => turns.get(turn_of(prompt)).or(turns.last()).cloned().unwrap_or_default(),
            (Self::Tokens(tokens), _) => text(tokens.clone()),
            (Self::Echo, Prompt::Chat(chat)) => {
                text(words(&chat.messages.last().map(|message| content_text(message.get("content"))).unwrap_or_default()))
            }
            (Self::Echo, prompt) => text(words(&prompt_text(prompt))),
        }
    }
}

/// How many times the assistant has called so far; past every turn where it cannot.
fn turn_of(prompt: &Prompt) -> usize {
    let Prompt::Chat(ChatPrompt { messages, tools: Some(_), .. }) = prompt else { return usize::MAX };
    messages.iter().filter(|message| message.get("tool_calls").is_some_and(Value::is_array)).count()
}

fn words(text: &str) -> Vec<String> {
    text.split_inclusive(' ').map(Into::into).collect()
}

/// What the mock's chat template makes of a prompt.
pub(super) fn prompt_text(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Tokens(ids) => text_of(ids),
        Prompt::Chat(chat) => chat_text(chat),
        Prompt::Infill { prefix, suffix } => format!("{prefix}…{suffix}"),
    }
}

fn chat_text(chat: &ChatPrompt) -> String {
    let role = |message: &serde_json::Map<String, Value>| message.get("role").and_then(Value::as_str).unwrap_or_default().to_owned();
    let turn = |message| format!("{}: {}\n", role(message), content_text(message.get("content")));
    let header = if chat.add_generation_prompt { "assistant: " } else { "" };
    chat.messages.iter().map(turn).chain([header.to_owned()]).collect()
}

fn content_text(content: Option<&Value>) -> String {
    match content {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts.iter().map(|part| part.get("text").and_then(Value::as_str).unwrap_or("<picture>")).collect(),
        _ => String::new(),
    }
}

pub(super) fn tokens(prompt: &Prompt) -> Vec<u32> {
    match prompt {
        Prompt::Tokens(ids) => ids.clone(),
        prompt => prompt_text(prompt).chars().map(u32::from).collect(),
    }
}

pub(super) fn text_of(ids: &[u32]) -> String {
    ids.iter().map(|&id| char::from_u32(id).unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// The token at `place` of an answer, with `top` alternatives, itself first.
pub(super) fn logprob(text: &str, place: usize, top: u8) -> TokenLogprob {
    let choice = |rank: u8| {
        let text = if rank == 0 { text.to_owned() } else { format!("{text}~{rank}") };
        TokenChoice { id: place as u32, bytes: text.clone().into_bytes(), text, logprob: -0.25 - f32::from(rank) }
    };
    TokenLogprob { chosen: choice(0), top: (0..top).map(choice).collect() }
}

/// The share of a document's words that the query has, too.
pub(super) fn relevance(query: &str, document: &str) -> f32 {
    let words: Vec<&str> = document.split_whitespace().collect();
    let shared = words.iter().filter(|word| query.split_whitespace().any(|asked| asked == **word)).count();
    shared as f32 / words.len().max(1) as f32
}

/// Four numbers of unit length that depend on the characters and their places.
pub(super) fn vector(text: &str) -> Vec<f32> {
    let mut vector = [1.0f32; 4];
    for (place, character) in text.chars().enumerate() {
        vector[(place + character as usize) % 4] += (character as u32 % 97) as f32 / 97.0;
    }
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter().map(|x| x / length).collect()
}
