//! A node's chat answer as the events of this dialect.

use bytes::BytesMut;
use cortex_core::openai::CompletionUsage;
use cortex_core::openai::error::ErrorDetail;
use cortex_core::sse::{self, SseEvent, SseParser};
use serde_json::{Value, json};

use super::answer::{Head, Item, Said, Status};
use super::request::Echo;
use crate::translate::Translator;
use crate::translate::chunk::{CallDelta, Chunk, Delta};
use crate::translate::stream::EVENT_BYTES_MAX;

const SERVER_ERROR: &str = "server_error";

/// One answer under way.
#[derive(Debug)]
pub(crate) struct StreamTranslator {
    parser: SseParser,
    fold: Fold,
}

impl StreamTranslator {
    pub(crate) fn new(echo: Echo, request_id: &str, created_at: u64) -> Self {
        Self { parser: SseParser::new(EVENT_BYTES_MAX), fold: Fold::new(echo, request_id, created_at) }
    }
}

impl Translator for StreamTranslator {
    fn push(&mut self, bytes: &[u8], out: &mut BytesMut) {
        let fold = &mut self.fold;
        let read = self.parser.push(bytes, |event| write(fold.event(&event), out));
        if let Err(error) = read {
            self.cut(&error.to_string(), out);
        }
    }

    fn end(&mut self, out: &mut BytesMut) {
        self.cut("the node's answer ended too early", out);
    }

    fn cut(&mut self, reason: &str, out: &mut BytesMut) {
        write(self.fold.fails(SERVER_ERROR, reason), out);
    }

    /// A comment: this dialect has no event for it.
    fn ping(&self, out: &mut BytesMut) {
        if !self.fold.ended {
            out.extend_from_slice(b": waiting\n\n");
        }
    }
}

fn write(events: Vec<Value>, out: &mut BytesMut) {
    for event in events {
        sse::write_event(out, event["type"].as_str().unwrap_or_default(), &event);
    }
}

/// A whole chat answer as a whole answer of this dialect. `None` for what is no chat answer.
pub(crate) fn whole(body: &[u8], echo: Echo, request_id: &str, created_at: u64) -> Option<Value> {
    let chunk: Chunk = serde_json::from_slice(body).ok()?;
    let mut fold = Fold::new(echo, request_id, created_at);
    fold.chunk(chunk);
    fold.done().pop().filter(|last| last["type"] != "response.failed").map(|mut last| last["response"].take())
}

/// Chunks in, events out.
#[derive(Debug)]
pub(super) struct Fold {
    head: Head,
    request_id: String,
    sequence: u64,
    started: bool,
    ended: bool,
    /// The last one is open unless `closed`.
    items: Vec<Item>,
    closed: bool,
    /// Calls opened so far.
    calls: usize,
    end: Option<Status>,
    usage: Option<CompletionUsage>,
}

impl Fold {
    pub(super) fn new(echo: Echo, request_id: &str, created_at: u64) -> Self {
        Self {
            head: Head { id: format!("resp_{request_id}"), created_at, echo },
            request_id: request_id.into(),
            sequence: 0,
            started: false,
            ended: false,
            items: Vec::new(),
            closed: true,
            calls: 0,
            end: None,
            usage: None,
        }
    }

    fn event(&mut self, event: &SseEvent) -> Vec<Value> {
        match event.data.as_str() {
            _ if self.ended => Vec::new(),
            "[DONE]" => self.done(),
            data => match serde_json::from_str(data) {
                Ok(Chunk { error: Some(error), .. }) => self.fails(code(&error), &error.message),
                Ok(chunk) => self.chunk(chunk),
                Err(error) => self.fails(SERVER_ERROR, &format!("the node said something that cannot be read: {error}")),
            },
        }
    }

    pub(super) fn chunk(&mut self, chunk: Chunk) -> Vec<Value> {
        let mut events = Vec::new();
        self.usage = chunk.usage.or(self.usage);
        let Some(choice) = chunk.choices.into_iter().find(|choice| choice.index == 0) else { return events };
        self.start(&mut events);
        if let Err(reason) = self.delta(choice.delta, &mut events) {
            events.extend(self.fails(SERVER_ERROR, reason));
        }
        self.end = choice.finish_reason.map(|reason| status(&reason)).or(self.end);
        events
    }

    fn start(&mut self, events: &mut Vec<Value>) {
        if !std::mem::replace(&mut self.started, true) {
            for kind in ["response.created", "response.in_progress"] {
                let response = self.head.response(Status::InProgress, &[], None, None);
                self.say(kind, json!({ "response": response }), events);
            }
        }
    }

    fn say(&mut self, kind: &str, event: Value, events: &mut Vec<Value>) {
        let mut said = json!({ "type": kind, "sequence_number": self.sequence });
        if let (Value::Object(said), Value::Object(event)) = (&mut said, event) {
            said.extend(event);
        }
        self.sequence += 1;
        events.push(said);
    }

    /// An event about the open item.
    fn say_of_item(&mut self, kind: &str, mut event: Value, events: &mut Vec<Value>) {
        event["output_index"] = self.items.len().saturating_sub(1).into();
        if let (Some(item), None) = (self.items.last(), event.get("item")) {
            event["item_id"] = item.id.as_str().into();
        }
        self.say(kind, event, events);
    }

    fn delta(&mut self, delta: Delta, events: &mut Vec<Value>) -> Result<(), &'static str> {
        if let Some(more) = delta.reasoning_content.filter(|text| !text.is_empty()) {
            if !matches!(self.open(), Some(Said::Thought(_))) {
                self.begin("rs", Said::Thought(String::new()), events);
            }
            self.more(&more, events);
        }
        if let Some(more) = delta.content.filter(|text| !text.is_empty()) {
            if !matches!(self.open(), Some(Said::Text(_))) {
                self.begin("msg", Said::Text(String::new()), events);
            }
            self.more(&more, events);
        }
        let calls = delta.tool_calls.unwrap_or_default();
        calls.into_iter().enumerate().try_for_each(|(place, call)| self.call(place, call, events))
    }

    fn open(&self) -> Option<&Said> {
        self.items.last().filter(|_| !self.closed).map(|item| &item.said)
    }

    fn call(&mut self, place: usize, delta: CallDelta, events: &mut Vec<Value>) -> Result<(), &'static str> {
        let call = delta.index.unwrap_or(place);
        let is_open = matches!(self.open(), Some(Said::Call { .. })) && call + 1 == self.calls;
        if !is_open {
            // Items are told one after the other, so a call that was left cannot be taken up again.
            if call < self.calls {
                return Err("the node mixed the arguments of several calls");
            }
            let name = delta.function.name.ok_or("the node began a call without a name")?;
            let call_id = delta.id.unwrap_or_else(|| format!("call_{}_{call}", self.request_id));
            self.calls = call + 1;
            let (namespace, name) = self.head.echo.namespaces.split(name);
            self.begin("fc", Said::Call { call_id, namespace, name, arguments: String::new() }, events);
        }
        if let Some(more) = delta.function.arguments.filter(|text| !text.is_empty()) {
            self.more(&more, events);
        }
        Ok(())
    }

    fn begin(&mut self, kind: &str, said: Said, events: &mut Vec<Value>) {
        self.close(Status::Completed, events);
        let item = Item { id: format!("{kind}_{}_{}", self.request_id, self.items.len()), status: Status::InProgress.word(), said };
        let (shown, part) = (item.json(), item.part());
        self.items.push(item);
        self.closed = false;
        self.say_of_item("response.output_item.added", json!({ "item": shown }), events);
        if let Some(part) = part {
            self.say_of_item("response.content_part.added", json!({ "content_index": 0, "part": part }), events);
        }
    }

    fn more(&mut self, more: &str, events: &mut Vec<Value>) {
        let Some(Item { said, .. }) = self.items.last_mut() else { return };
        let (kind, event) = match said {
            Said::Text(text) => {
                text.push_str(more);
                ("response.output_text.delta", json!({ "content_index": 0, "delta": more, "logprobs": [] }))
            }
            Said::Thought(text) => {
                text.push_str(more);
                ("response.reasoning_text.delta", json!({ "content_index": 0, "delta": more }))
            }
            Said::Call { arguments, .. } => {
                arguments.push_str(more);
                ("response.function_call_arguments.delta", json!({ "delta": more }))
            }
        };
        self.say_of_item(kind, event, events);
    }

    fn close(&mut self, status: Status, events: &mut Vec<Value>) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        if self.items.last().is_some_and(|item| matches!(&item.said, Said::Call { arguments, .. } if arguments.is_empty())) {
            self.more("{}", events);
        }
        let Some(item) = self.items.last_mut() else { return };
        item.status = status.word();
        let (part, shown) = (item.part(), item.json());
        let (kind, event) = match &item.said {
            Said::Text(text) => ("response.output_text.done", json!({ "content_index": 0, "text": text, "logprobs": [] })),
            Said::Thought(text) => ("response.reasoning_text.done", json!({ "content_index": 0, "text": text })),
            Said::Call { name, arguments, .. } => {
                ("response.function_call_arguments.done", json!({ "name": name, "arguments": arguments }))
            }
        };
        self.say_of_item(kind, event, events);
        if let Some(part) = part {
            self.say_of_item("response.content_part.done", json!({ "content_index": 0, "part": part }), events);
        }
        self.say_of_item("response.output_item.done", json!({ "item": shown }), events);
    }

    /// The node says that the answer is whole.
    pub(super) fn done(&mut self) -> Vec<Value> {
        let Some(status) = self.end.take() else { return self.fails(SERVER_ERROR, "the node's answer ended without saying why") };
        if self.ended {
            return Vec::new();
        }
        let mut events = Vec::new();
        self.close(status, &mut events);
        self.ended = true;
        let response = self.head.response(status, &self.items, self.usage, None);
        self.say(&format!("response.{}", status.word()), json!({ "response": response }), &mut events);
        events
    }

    /// Says that the answer broke off. The open item ends incomplete, without the `done` of its parts: no client should take half a text
    /// or half a call for a whole one. An answer that has ended stays as it is.
    fn fails(&mut self, code: &str, message: &str) -> Vec<Value> {
        let mut events = Vec::new();
        if self.ended {
            return events;
        }
        self.start(&mut events);
        if let Some(item) = self.items.last_mut().filter(|_| !self.closed) {
            item.status = Status::Incomplete("").word();
            let shown = item.json();
            self.closed = true;
            self.say_of_item("response.output_item.done", json!({ "item": shown }), &mut events);
        }
        self.ended = true;
        let response = self.head.response(Status::Failed, &self.items, self.usage, Some((code, message)));
        self.say("response.failed", json!({ "response": response }), &mut events);
        events
    }
}

/// This dialect knows few codes.
fn code(error: &ErrorDetail) -> &'static str {
    match error.kind.as_str() {
        "rate_limit_error" => "rate_limit_exceeded",
        "invalid_request_error" => "invalid_prompt",
        _ => SERVER_ERROR,
    }
}

fn status(finish_reason: &str) -> Status {
    match finish_reason {
        "length" => Status::Incomplete("max_output_tokens"),
        "content_filter" => Status::Incomplete("content_filter"),
        _ => Status::Completed,
    }
}
