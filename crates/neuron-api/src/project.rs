//! One projection of a generation, folded both ways: its events become chunks, which are streamed as they come or put together
//! into the whole answer.

use axum::Json;
use axum::response::{IntoResponse, Response};
use cortex_core::openai::GenerateOptions;
use cortex_core::openai::tool_call::ToolCallDelta;
use cortex_core::{EventStream, FinishReason, GenerateEvent, GenerateRequest, HarnessError, ModelId, Prompt, Usage};
use futures::StreamExt;
use futures::future::try_join_all;
use futures::stream::{BoxStream, SelectAll};

use crate::Api;
use crate::call::Call;
use crate::dialect::Dialect;
use crate::error::{Failure, cut_short};
use crate::stream;

/// The choices of one request, running. Dropping it cancels them all.
pub(crate) struct Generation<D: Dialect> {
    dialect: D,
    events: SelectAll<BoxStream<'static, (usize, Result<GenerateEvent, HarnessError>)>>,
    choices: Vec<Choice>,
    /// Choices for each prompt: the first of them counts the prompt.
    n: usize,
    prompt_usage: bool,
}

#[derive(Clone, Copy, Default)]
struct Choice {
    opened: bool,
    prompt: Usage,
    finished: Option<Usage>,
}

/// Starts `options.n` generations for each prompt and answers when all are admitted; if one is not, the others are cancelled.
pub(crate) async fn start<D: Dialect>(
    api: &Api,
    call: &Call,
    model: &ModelId,
    prompts: Vec<Prompt>,
    options: &GenerateOptions,
    dialect: D,
) -> Result<Generation<D>, HarnessError> {
    let n = options.n as usize;
    let admissions = prompts.iter().flat_map(|prompt| (0..options.n).map(move |i| (prompt, i))).map(|(prompt, i)| {
        let mut sampling = options.sampling.clone();
        sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(i.into()));
        api.harness.generate(GenerateRequest {
            model: model.clone(),
            request_id: call.request_id.clone(),
            prompt: prompt.clone(),
            sampling,
            stop: options.stop.clone(),
            max_tokens: options.max_tokens,
            logprobs: options.logprobs,
            prompt_logprobs: options.prompt_logprobs,
        })
    });
    let admitted = try_join_all(admissions).await?;
    Ok(Generation::new(dialect, admitted, n, options.prompt_usage))
}

impl<D: Dialect> Generation<D> {
    fn new(dialect: D, admitted: Vec<EventStream>, n: usize, prompt_usage: bool) -> Self {
        let choices = vec![Choice::default(); admitted.len()];
        let tagged = admitted.into_iter().enumerate().map(|(index, events)| events.map(move |event| (index, event)).boxed());
        Self { dialect, events: tagged.collect(), choices, n, prompt_usage }
    }

    /// The chunks of the next event, often one, sometimes none; `None` when every choice has finished. Nothing runs on after an error.
    pub(crate) async fn next(&mut self) -> Option<Result<Vec<D::Chunk>, HarnessError>> {
        if self.choices.iter().all(|choice| choice.finished.is_some()) {
            self.events.clear();
            return None;
        }
        let event = self.events.next().await;
        Some(match event {
            Some((index, Ok(event))) => Ok(self.project(index, event)),
            Some((_, Err(error))) => Err(self.abandon(error)),
            None => Err(self.abandon(cut_short())),
        })
    }

    fn abandon(&mut self, error: HarnessError) -> HarnessError {
        self.events.clear();
        error
    }

    fn project(&mut self, index: usize, event: GenerateEvent) -> Vec<D::Chunk> {
        match event {
            GenerateEvent::Started { prompt_tokens, cached_tokens } => {
                self.choices[index].prompt = Usage { prompt_tokens, cached_tokens, ..Usage::default() };
                Vec::new()
            }
            GenerateEvent::Prompt { first, rest } => {
                self.dialect.prompt(index as u32, first, rest);
                Vec::new()
            }
            GenerateEvent::Text { text, logprobs } if text.is_empty() && logprobs.is_empty() => Vec::new(),
            GenerateEvent::Text { text, logprobs } => self.after_opening(index, |dialect, index| dialect.text(index, text, logprobs)),
            GenerateEvent::Reasoning { text, logprobs } => {
                self.after_opening(index, |dialect, index| dialect.reasoning(index, text, logprobs))
            }
            GenerateEvent::ToolCall { index: place, id, name } => {
                let call = ToolCallDelta::begin(place, id, name);
                self.after_opening(index, |dialect, index| dialect.tool_call(index, call))
            }
            GenerateEvent::ToolArguments { index: place, text } => {
                let call = ToolCallDelta::more(place, text);
                self.after_opening(index, |dialect, index| dialect.tool_call(index, call))
            }
            GenerateEvent::Finish { reason, stop, usage } => self.finish(index, reason, stop, usage),
        }
    }

    fn finish(&mut self, index: usize, reason: FinishReason, stop: Option<String>, usage: Usage) -> Vec<D::Chunk> {
        self.choices[index].finished = Some(usage);
        self.after_opening(index, |dialect, index| dialect.finish(index, reason, stop))
    }

    /// The opening waits for the first text, so that a gateway can still turn to another node when the prefill fails.
    fn after_opening(&mut self, index: usize, chunk: impl FnOnce(&mut D, u32) -> D::Chunk) -> Vec<D::Chunk> {
        let first = !std::mem::replace(&mut self.choices[index].opened, true);
        let prompt = self.prompt_usage.then(|| self.choices[index].prompt.into());
        let opening = first.then(|| self.dialect.opening(index as u32, prompt)).flatten();
        opening.into_iter().chain([chunk(&mut self.dialect, index as u32)]).collect()
    }

    /// What all choices used: each prompt once, and every answer.
    pub(crate) fn usage(&self) -> Usage {
        let mut sum = Usage::default();
        for (place, choice) in self.choices.iter().enumerate() {
            let usage = choice.finished.unwrap_or_default();
            sum.completion_tokens += usage.completion_tokens;
            sum.reasoning_tokens += usage.reasoning_tokens;
            if place % self.n == 0 {
                sum.prompt_tokens += usage.prompt_tokens;
                sum.cached_tokens += usage.cached_tokens;
            }
        }
        sum
    }

    /// The chunk that tells the usage.
    pub(crate) fn usage_chunk(&self) -> D::Chunk {
        self.dialect.usage(self.usage().into())
    }

    /// Answers, streamed or whole, as `options` ask.
    pub(crate) async fn answer(self, call: &Call, options: &GenerateOptions) -> Result<Response, Failure> {
        if options.stream { Ok(stream::respond(self, options.include_usage, call.wants_usage)) } else { self.whole(call).await }
    }

    async fn whole(mut self, call: &Call) -> Result<Response, Failure> {
        let mut chunks = Vec::new();
        while let Some(next) = self.next().await {
            chunks.extend(next?);
        }
        chunks.push(self.usage_chunk());
        let whole = D::fold(chunks).ok_or_else(cut_short)?;
        let mut response = Json(whole).into_response();
        call.report_usage(&mut response, &self.usage());
        Ok(response)
    }
}
