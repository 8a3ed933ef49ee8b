//! A node's stream as an Anthropic stream: bytes in, cut anywhere, bytes out.

use bytes::BytesMut;
use cortex_core::anthropic::error::{ErrorDetail, ErrorKind};
use cortex_core::anthropic::stream::MessageEnd;
use cortex_core::anthropic::{AnswerBlock, BlockDelta, Message, StopReason, StreamEvent, Usage};
use cortex_core::openai::CompletionUsage;
use cortex_core::sse::{SseEvent, SseParser};
use serde_json::{Map, Value};

use super::chunk::{CallDelta, Chunk, Delta};
use super::error::of_event;
use super::{Asked, Translator};

/// Longest event that is accepted from a node.
pub(super) const EVENT_BYTES_MAX: usize = 16 << 20;

/// One answer under way.
#[derive(Debug)]
pub(crate) struct StreamTranslator {
    parser: SseParser,
    fold: Fold,
    request_id: String,
}

impl StreamTranslator {
    pub(crate) fn new(asked: Asked, request_id: &str) -> Self {
        Self { parser: SseParser::new(EVENT_BYTES_MAX), fold: Fold::new(asked, request_id), request_id: request_id.into() }
    }
}

impl Translator for StreamTranslator {
    fn push(&mut self, bytes: &[u8], out: &mut BytesMut) {
        if self.fold.ended {
            return;
        }
        let (fold, request_id) = (&mut self.fold, &self.request_id);
        let read = self.parser.push(bytes, |event| write(fold.event(&event), request_id, out));
        if let Err(error) = read {
            self.cut(&error.to_string(), out);
        }
    }

    fn end(&mut self, out: &mut BytesMut) {
        self.cut("the node's answer ended too early", out);
    }

    fn cut(&mut self, reason: &str, out: &mut BytesMut) {
        if !self.fold.ended {
            write(self.fold.fails(broken(reason)), &self.request_id, out);
        }
    }

    fn ping(&self, out: &mut BytesMut) {
        if !self.fold.ended {
            StreamEvent::Ping.write(out);
        }
    }
}

fn write(events: Vec<StreamEvent>, request_id: &str, out: &mut BytesMut) {
    for mut event in events {
        if let StreamEvent::Error { request_id: id, .. } = &mut event {
            *id = Some(request_id.into());
        }
        event.write(out);
    }
}

fn broken(reason: &str) -> ErrorDetail {
    ErrorDetail { kind: ErrorKind::Api, message: reason.into() }
}

/// The block that is open.
#[derive(Debug, PartialEq, Eq)]
enum Open {
    Text,
    Thinking,
    /// The call at this place of `tool_calls`; whether any of its arguments came.
    Call {
        call: usize,
        has_arguments: bool,
    },
}

/// Chunks in, events out.
#[derive(Debug)]
pub(super) struct Fold {
    id: String,
    asked: Asked,
    started: bool,
    ended: bool,
    open: Option<Open>,
    /// Blocks opened so far.
    blocks: usize,
    /// Calls opened so far.
    calls: usize,
    end: Option<MessageEnd>,
    usage: CompletionUsage,
}

type Events = Vec<StreamEvent>;

impl Fold {
    pub(super) fn new(asked: Asked, request_id: &str) -> Self {
        let id = format!("msg_{request_id}");
        let usage = CompletionUsage::default();
        Self { id, asked, started: false, ended: false, open: None, blocks: 0, calls: 0, end: None, usage }
    }

    fn event(&mut self, event: &SseEvent) -> Events {
        if self.ended {
            return Vec::new();
        }
        if event.data == "[DONE]" {
            return self.done();
        }
        match serde_json::from_str(&event.data) {
            Ok(Chunk { error: Some(error), .. }) => self.fails(of_event(&error)),
            Ok(chunk) => self.chunk(chunk),
            Err(error) => self.fails(broken(&format!("the node said something that cannot be read: {error}"))),
        }
    }

    pub(super) fn chunk(&mut self, chunk: Chunk) -> Events {
        let mut events = Vec::new();
        self.usage = chunk.usage.unwrap_or(self.usage);
        let Some(choice) = chunk.choices.into_iter().find(|choice| choice.index == 0) else { return events };
        self.start(&mut events);
        match self.delta(choice.delta, &mut events) {
            Ok(()) => self.notice_end(choice.finish_reason.as_deref(), choice.stop_reason),
            Err(error) => events.extend(self.fails(error)),
        }
        events
    }

    fn start(&mut self, events: &mut Events) {
        if !std::mem::replace(&mut self.started, true) {
            let usage = Usage { output_tokens: 0, ..self.usage() };
            events.push(StreamEvent::MessageStart { message: Message::new(self.id.clone(), self.asked.model.clone(), usage) });
        }
    }

    fn delta(&mut self, delta: Delta, events: &mut Events) -> Result<(), ErrorDetail> {
        if let Some(thinking) = delta.reasoning_content.filter(|text| !text.is_empty()) {
            self.open_plain(Open::Thinking, events);
            self.more(BlockDelta::ThinkingDelta { thinking }, events);
        }
        if let Some(text) = delta.content.filter(|text| !text.is_empty()) {
            self.open_plain(Open::Text, events);
            self.more(BlockDelta::TextDelta { text }, events);
        }
        let calls = delta.tool_calls.unwrap_or_default();
        calls.into_iter().enumerate().try_for_each(|(place, call)| self.call(place, call, events))
    }

    fn open_plain(&mut self, kind: Open, events: &mut Events) {
        if self.open.as_ref() == Some(&kind) {
            return;
        }
        let block = match kind {
            Open::Thinking => AnswerBlock::Thinking { thinking: String::new(), signature: String::new() },
            _ => AnswerBlock::Text { text: String::new() },
        };
        self.open(kind, block, events);
    }

    fn call(&mut self, place: usize, delta: CallDelta, events: &mut Events) -> Result<(), ErrorDetail> {
        let call = delta.index.unwrap_or(place);
        let is_open = matches!(self.open, Some(Open::Call { call: open, .. }) if open == call);
        if !is_open {
            // Blocks are told one after the other, so a call that was left cannot be taken up again.
            if call < self.calls {
                return Err(broken("the node mixed the arguments of several calls"));
            }
            let name = delta.function.name.ok_or_else(|| broken("the node began a call without a name"))?;
            let id = delta.id.unwrap_or_else(|| format!("toolu_{}_{call}", self.id));
            self.calls = call + 1;
            let block = AnswerBlock::ToolUse { id, name, input: Value::Object(Map::new()) };
            self.open(Open::Call { call, has_arguments: false }, block, events);
        }
        if let Some(partial_json) = delta.function.arguments.filter(|text| !text.is_empty()) {
            self.open = Some(Open::Call { call, has_arguments: true });
            self.more(BlockDelta::InputJsonDelta { partial_json }, events);
        }
        Ok(())
    }

    fn open(&mut self, kind: Open, content_block: AnswerBlock, events: &mut Events) {
        self.close(events);
        self.open = Some(kind);
        events.push(StreamEvent::ContentBlockStart { index: self.blocks, content_block });
        self.blocks += 1;
    }

    fn more(&self, delta: BlockDelta, events: &mut Events) {
        events.push(StreamEvent::ContentBlockDelta { index: self.blocks - 1, delta });
    }

    fn close(&mut self, events: &mut Events) {
        let Some(open) = self.open.take() else { return };
        let index = self.blocks - 1;
        match open {
            Open::Thinking => self.more(BlockDelta::SignatureDelta { signature: format!("{}_{index}", self.id) }, events),
            Open::Call { has_arguments: false, .. } => self.more(BlockDelta::InputJsonDelta { partial_json: "{}".into() }, events),
            Open::Text | Open::Call { .. } => {}
        }
        events.push(StreamEvent::ContentBlockStop { index });
    }

    fn notice_end(&mut self, finish_reason: Option<&str>, stopped_by: Option<Value>) {
        let Some(finish_reason) = finish_reason else { return };
        let stop_sequence = if let Some(Value::String(text)) = stopped_by { Some(text) } else { None };
        let reason = match finish_reason {
            "stop" if stop_sequence.is_some() => StopReason::StopSequence,
            "length" => StopReason::MaxTokens,
            "tool_calls" => StopReason::ToolUse,
            "content_filter" => StopReason::Refusal,
            _ => StopReason::EndTurn,
        };
        self.end = Some(MessageEnd { stop_reason: Some(reason), stop_sequence });
    }

    /// The node says that the answer is whole.
    pub(super) fn done(&mut self) -> Events {
        let Some(delta) = self.end.take() else { return self.fails(broken("the node's answer ended without saying why")) };
        let mut events = Vec::new();
        self.close(&mut events);
        self.ended = true;
        events.extend([StreamEvent::MessageDelta { delta, usage: self.usage() }, StreamEvent::MessageStop]);
        events
    }

    /// The error is the last event, whatever is open.
    fn fails(&mut self, error: ErrorDetail) -> Events {
        self.ended = true;
        vec![StreamEvent::Error { error, request_id: None }]
    }

    /// To a client that marks what should be cached, `input_tokens` are those that were not. Any other client reads the whole prompt there,
    /// which is what `count_tokens` says.
    fn usage(&self) -> Usage {
        let cached = self.usage.prompt_tokens_details.cached_tokens;
        let apart = if self.asked.marks_cache { cached } else { 0 };
        Usage {
            input_tokens: self.usage.prompt_tokens.saturating_sub(apart),
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: cached,
            output_tokens: self.usage.completion_tokens,
        }
    }
}
