//! The two dialects of a generation: the same moments, in chat's words or in plain completion's.

use std::sync::Arc;

use cortex_core::openai::chat::{ChatChunkChoice, ChatDelta, ChatLogprobs, Role};
use cortex_core::openai::completions::{CompletionChoice, CompletionLogprobs};
use cortex_core::openai::tool_call::ToolCallDelta;
use cortex_core::openai::{ChatChunk, ChatCompletion, ChatFold, Completion, CompletionFold, CompletionUsage};
use cortex_core::{FinishReason, TokenLogprob};
use serde::Serialize;

/// How chunks of an answer are written, and how they fold into the whole.
pub(crate) trait Dialect: Send + 'static {
    type Chunk: Serialize + Send + 'static;
    type Whole: Serialize;

    /// Takes what is to be said of a choice's prompt in its opening.
    fn prompt(&mut self, index: u32, first: String, rest: Vec<TokenLogprob>);
    /// Goes before a choice's first text; `prompt` is what is known of the prompt, if the request wants to hear it.
    fn opening(&mut self, index: u32, prompt: Option<CompletionUsage>) -> Option<Self::Chunk>;
    fn text(&mut self, index: u32, text: String, logprobs: Vec<TokenLogprob>) -> Self::Chunk;
    fn reasoning(&mut self, index: u32, text: String, logprobs: Vec<TokenLogprob>) -> Self::Chunk;
    fn tool_call(&mut self, index: u32, call: ToolCallDelta) -> Self::Chunk;
    fn finish(&self, index: u32, reason: FinishReason, stop: Option<String>) -> Self::Chunk;
    fn usage(&self, usage: CompletionUsage) -> Self::Chunk;
    /// `None` when a choice has no finish.
    fn fold(chunks: Vec<Self::Chunk>) -> Option<Self::Whole>;
}

/// What all chunks of an answer share.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) id: Arc<str>,
    pub(crate) created: u64,
    pub(crate) model: Arc<str>,
}

pub(crate) struct Chat(pub(crate) Head);

impl Chat {
    fn chunk(&self, choices: Vec<ChatChunkChoice>) -> ChatChunk {
        let Head { id, created, model } = self.0.clone();
        ChatChunk { id, object: Default::default(), created, model, choices, usage: None }
    }

    fn delta(&self, index: u32, delta: ChatDelta, logprobs: Vec<TokenLogprob>) -> ChatChunk {
        let content: Vec<_> = logprobs.into_iter().map(Into::into).collect();
        let logprobs = (!content.is_empty()).then_some(ChatLogprobs { content });
        self.chunk(vec![ChatChunkChoice { index, delta, logprobs, ..Default::default() }])
    }
}

impl Dialect for Chat {
    type Chunk = ChatChunk;
    type Whole = ChatCompletion;

    /// Chat has no place for the tokens of a prompt, and no field that asks for them.
    fn prompt(&mut self, _: u32, _: String, _: Vec<TokenLogprob>) {}

    fn opening(&mut self, index: u32, prompt: Option<CompletionUsage>) -> Option<ChatChunk> {
        let delta = ChatDelta { role: Some(Role::Assistant), content: Some(String::new()), ..Default::default() };
        Some(ChatChunk { usage: prompt, ..self.delta(index, delta, Vec::new()) })
    }

    fn text(&mut self, index: u32, text: String, logprobs: Vec<TokenLogprob>) -> ChatChunk {
        self.delta(index, ChatDelta { content: Some(text), ..Default::default() }, logprobs)
    }

    fn reasoning(&mut self, index: u32, text: String, logprobs: Vec<TokenLogprob>) -> ChatChunk {
        self.delta(index, ChatDelta { reasoning_content: Some(text), ..Default::default() }, logprobs)
    }

    fn tool_call(&mut self, index: u32, call: ToolCallDelta) -> ChatChunk {
        self.delta(index, ChatDelta { tool_calls: vec![call], ..Default::default() }, Vec::new())
    }

    fn finish(&self, index: u32, reason: FinishReason, stop_reason: Option<String>) -> ChatChunk {
        self.chunk(vec![ChatChunkChoice { index, finish_reason: Some(reason), stop_reason, ..Default::default() }])
    }

    fn usage(&self, usage: CompletionUsage) -> ChatChunk {
        ChatChunk { usage: Some(usage), ..self.chunk(Vec::new()) }
    }

    fn fold(chunks: Vec<ChatChunk>) -> Option<ChatCompletion> {
        let mut fold = ChatFold::default();
        chunks.into_iter().for_each(|chunk| fold.push(chunk));
        fold.finish()
    }
}

pub(crate) struct Plain {
    head: Head,
    /// What each choice begins with: its prompt, where that was asked for.
    echoes: Vec<Option<Arc<str>>>,
    /// What is to be said of its tokens.
    prompts: Vec<Option<CompletionLogprobs>>,
    /// Where the next token's text starts in each choice, in characters.
    offsets: Vec<u32>,
}

impl Plain {
    pub(crate) fn new(head: Head, echoes: Vec<Option<Arc<str>>>) -> Self {
        let choices = echoes.len();
        Self { head, echoes, prompts: vec![None; choices], offsets: vec![0; choices] }
    }

    fn chunk(&self, choices: Vec<CompletionChoice>) -> Completion {
        let Head { id, created, model } = self.head.clone();
        Completion { id, object: Default::default(), created, model, choices, usage: None }
    }
}

impl Dialect for Plain {
    type Chunk = Completion;
    type Whole = Completion;

    fn prompt(&mut self, index: u32, first: String, rest: Vec<TokenLogprob>) {
        let echo = self.echoes[index as usize].as_deref().unwrap_or_default();
        let end = echo.chars().count() as u32;
        // A token that the tokenizer put before the text is no part of it.
        let mut offset = if echo.starts_with(&first) { first.chars().count() as u32 } else { 0 };
        let mut logprobs = CompletionLogprobs::default();
        logprobs.push_first(first);
        for token in rest {
            offset = logprobs.push(token, offset).min(end);
        }
        self.offsets[index as usize] = end;
        self.prompts[index as usize] = Some(logprobs);
    }

    fn opening(&mut self, index: u32, _: Option<CompletionUsage>) -> Option<Completion> {
        let text = self.echoes[index as usize].as_ref()?.as_ref().to_owned();
        let logprobs = self.prompts[index as usize].take();
        Some(self.chunk(vec![CompletionChoice { index, text, logprobs, ..CompletionChoice::default() }]))
    }

    fn text(&mut self, index: u32, text: String, tokens: Vec<TokenLogprob>) -> Completion {
        let mut logprobs = (!tokens.is_empty()).then(CompletionLogprobs::default);
        for token in tokens {
            let offset = &mut self.offsets[index as usize];
            *offset = logprobs.get_or_insert_default().push(token, *offset);
        }
        self.chunk(vec![CompletionChoice { index, text, logprobs, ..CompletionChoice::default() }])
    }

    /// A harness reads only chat answers; from another one, thoughts are text like any other.
    fn reasoning(&mut self, index: u32, text: String, logprobs: Vec<TokenLogprob>) -> Completion {
        self.text(index, text, logprobs)
    }

    /// As with thoughts: nothing that was said is left out.
    fn tool_call(&mut self, index: u32, call: ToolCallDelta) -> Completion {
        let function = call.function.unwrap_or_default();
        let name = function.name.map(|name| name + " ").unwrap_or_default();
        self.text(index, name + &function.arguments.unwrap_or_default(), Vec::new())
    }

    fn finish(&self, index: u32, reason: FinishReason, stop_reason: Option<String>) -> Completion {
        self.chunk(vec![CompletionChoice { index, finish_reason: Some(reason), stop_reason, ..CompletionChoice::default() }])
    }

    fn usage(&self, usage: CompletionUsage) -> Completion {
        Completion { usage: Some(usage), ..self.chunk(Vec::new()) }
    }

    fn fold(chunks: Vec<Completion>) -> Option<Completion> {
        let mut fold = CompletionFold::default();
        chunks.into_iter().for_each(|chunk| fold.push(chunk));
        fold.finish()
    }
}
