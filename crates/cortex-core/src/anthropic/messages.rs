//! The body of `POST /v1/messages` and `/v1/messages/count_tokens`.

use serde_json::Value;

use super::reader::{Reader, RequestError, placed};

/// A request, checked. What nobody here can act on (unknown fields, blocks of server tools) is left out.
#[derive(Clone, Debug, PartialEq)]
pub struct MessagesRequest {
    /// As the client names it.
    pub model: String,
    /// The texts of `system`, a string or blocks.
    pub system: Vec<String>,
    /// The conversation.
    pub turns: Vec<Turn>,
    /// Longest answer in tokens. Only `count_tokens` may leave it out.
    pub max_tokens: Option<u64>,
    /// Texts that end the answer.
    pub stop_sequences: Vec<String>,
    /// Answer in server-sent events.
    pub stream: bool,
    /// How to choose tokens.
    pub temperature: Option<f64>,
    /// How to choose tokens.
    pub top_p: Option<f64>,
    /// How to choose tokens.
    pub top_k: Option<u64>,
    /// What the model may call.
    pub tools: Vec<Tool>,
    /// Whether it must.
    pub tool_choice: Option<ToolChoice>,
    /// The answer holds one call at most.
    pub one_call_at_most: bool,
    /// Whether it may think first.
    pub thinking: Option<Thinking>,
    /// `cache_control` stands somewhere: the client reckons with cached tokens.
    pub marks_cache: bool,
}

/// One message.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What is said; a plain string is one text block.
    pub content: Vec<Block>,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The person, and the results of tools.
    User,
    /// The model.
    Assistant,
    /// Instructions in the middle of a conversation.
    System,
}

/// One content block of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Block {
    /// Text, also that of a plain-text document.
    Text(String),
    /// A picture.
    Image(ImageSource),
    /// What the model thought in an earlier turn.
    Thinking(String),
    /// A call that the model made.
    ToolUse {
        /// Names the call.
        id: String,
        /// The tool.
        name: String,
        /// The arguments, a JSON object.
        input: Value,
    },
    /// What came of a call.
    ToolResult {
        /// The call.
        tool_use_id: String,
        /// Texts and pictures.
        content: Vec<Block>,
    },
}

/// Where a picture is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageSource {
    /// In the request.
    Base64 {
        /// `image/png`, …
        media_type: String,
        /// The encoded bytes.
        data: String,
    },
    /// Elsewhere.
    Url(String),
}

/// A tool that the client runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// What the model calls it.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// JSON schema of its arguments.
    pub input_schema: Value,
}

/// Whether the model must call a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// As it likes.
    Auto,
    /// Some tool.
    Any,
    /// This tool.
    Tool(String),
    /// None.
    None,
}

/// Whether the model may think first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thinking {
    /// It may; `adaptive` means the same here.
    Enabled,
    /// It may not.
    Disabled,
}

impl MessagesRequest {
    /// Reads what is known and ignores the rest.
    ///
    /// # Errors
    /// The first field that is missing, of the wrong type, or that cannot be served, by its path.
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let mut parser = Parser::default();
        let mut reader = Reader::body(body)?;
        parser.notice_cache(&mut reader);
        let model = reader.text("model")?;
        let turns = reader.array("messages")?;
        let turns = reader.required("messages", turns)?;
        if turns.is_empty() {
            return Err(RequestError::new("messages", "must hold at least one message"));
        }
        let (tool_choice, one_call_at_most) = tool_choice(&mut reader)?;
        Ok(Self {
            model,
            turns: turns.into_iter().map(|(path, turn)| parser.turn(path, turn)).collect::<Result<_, _>>()?,
            system: parser.system(&mut reader)?,
            max_tokens: reader.integer("max_tokens", 1)?,
            stop_sequences: stop_sequences(&mut reader)?,
            stream: reader.flag("stream")?.unwrap_or(false),
            temperature: reader.number("temperature")?,
            top_p: reader.number("top_p")?,
            top_k: reader.integer("top_k", 0)?,
            tools: parser.tools(&mut reader)?,
            tool_choice,
            one_call_at_most,
            thinking: thinking(&mut reader)?,
            marks_cache: parser.marks_cache,
        })
    }

    /// `max_tokens`, which every request for an answer must give.
    ///
    /// # Errors
    /// It is not there.
    pub fn answer_tokens_max(&self) -> Result<u64, RequestError> {
        self.max_tokens.ok_or_else(|| RequestError::new("max_tokens", "is required"))
    }
}

/// Walks over everything that can hold blocks.
#[derive(Default)]
struct Parser {
    marks_cache: bool,
}

impl Parser {
    fn notice_cache(&mut self, reader: &mut Reader) {
        self.marks_cache |= reader.take("cache_control").is_some();
    }

    fn reader(&mut self, path: String, value: Value) -> Result<Reader, RequestError> {
        let mut reader = Reader::new(path, value)?;
        self.notice_cache(&mut reader);
        Ok(reader)
    }

    fn turn(&mut self, path: String, turn: Value) -> Result<Turn, RequestError> {
        let mut reader = self.reader(path, turn)?;
        let role = match reader.text("role")?.as_str() {
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "system" => Role::System,
            other => {
                return Err(RequestError::new(&reader.at("role"), format_args!("must be \"user\" or \"assistant\", not {other:?}")));
            }
        };
        let content = reader.take("content");
        let content = reader.required("content", content)?;
        Ok(Turn { role, content: self.content(&reader.at("content"), content)? })
    }

    fn system(&mut self, reader: &mut Reader) -> Result<Vec<String>, RequestError> {
        let Some(system) = reader.take("system") else { return Ok(Vec::new()) };
        let blocks = self.content("system", system)?;
        let text = |block| if let Block::Text(text) = block { Some(text) } else { None };
        Ok(blocks.into_iter().filter_map(text).collect())
    }

    fn content(&mut self, path: &str, content: Value) -> Result<Vec<Block>, RequestError> {
        let blocks = match content {
            Value::String(text) => return Ok(vec![Block::Text(text)]),
            Value::Array(blocks) => blocks,
            other => return Err(RequestError::wrong(path, "a string or an array of content blocks", &other)),
        };
        let blocks = placed(path, blocks).into_iter().map(|(path, block)| self.block(path, block));
        Ok(blocks.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    /// `None` for a block of another's tools, which means nothing to the model.
    fn block(&mut self, path: String, block: Value) -> Result<Option<Block>, RequestError> {
        let mut reader = self.reader(path, block)?;
        Ok(Some(match reader.text("type")?.as_str() {
            "text" => Block::Text(reader.text("text")?),
            "image" => Block::Image(image(&mut reader)?),
            "document" => Block::Text(document(&mut reader)?),
            "thinking" => Block::Thinking(reader.text("thinking")?),
            "tool_use" => tool_use(&mut reader)?,
            "tool_result" => self.tool_result(&mut reader)?,
            _ => return Ok(None),
        }))
    }

    fn tool_result(&mut self, reader: &mut Reader) -> Result<Block, RequestError> {
        let tool_use_id = reader.text("tool_use_id")?;
        let content = match reader.take("content") {
            Some(content) => self.content(&reader.at("content"), content)?,
            None => Vec::new(),
        };
        Ok(Block::ToolResult { tool_use_id, content })
    }

    fn tools(&mut self, reader: &mut Reader) -> Result<Vec<Tool>, RequestError> {
        let tools = reader.array("tools")?.unwrap_or_default();
        let tools = tools.into_iter().map(|(path, value)| self.reader(path, value).and_then(tool));
        Ok(tools.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }
}

/// `None` for a tool that Anthropic's servers would run.
fn tool(mut reader: Reader) -> Result<Option<Tool>, RequestError> {
    if reader.string("type")?.is_some_and(|kind| kind != "custom") {
        return Ok(None);
    }
    let name = reader.text("name")?;
    let description = reader.string("description")?;
    let schema = reader.take("input_schema");
    match reader.required("input_schema", schema)? {
        schema @ Value::Object(_) => Ok(Some(Tool { name, description, input_schema: schema })),
        other => Err(RequestError::wrong(&reader.at("input_schema"), "an object", &other)),
    }
}

fn tool_use(reader: &mut Reader) -> Result<Block, RequestError> {
    let (id, name) = (reader.text("id")?, reader.text("name")?);
    let input = reader.take("input").unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    match input {
        Value::Object(_) => Ok(Block::ToolUse { id, name, input }),
        other => Err(RequestError::wrong(&reader.at("input"), "an object", &other)),
    }
}

fn image(reader: &mut Reader) -> Result<ImageSource, RequestError> {
    let source = reader.object("source")?;
    let mut source = reader.required("source", source)?;
    match source.text("type")?.as_str() {
        "base64" => Ok(ImageSource::Base64 { media_type: source.text("media_type")?, data: source.text("data")? }),
        "url" => Ok(ImageSource::Url(source.text("url")?)),
        _ => Err(RequestError::new(&source.at("type"), "must be \"base64\" or \"url\": no files are kept here")),
    }
}

fn document(reader: &mut Reader) -> Result<String, RequestError> {
    let source = reader.object("source")?;
    let mut source = reader.required("source", source)?;
    match source.text("type")?.as_str() {
        "text" => source.text("data"),
        _ => Err(RequestError::new(&source.at("type"), "must be \"text\": other documents cannot be read here; send text or pictures")),
    }
}

fn stop_sequences(reader: &mut Reader) -> Result<Vec<String>, RequestError> {
    let texts = reader.array("stop_sequences")?.unwrap_or_default();
    let text = |(path, value): (String, Value)| match value {
        Value::String(text) => Ok(text),
        other => Err(RequestError::wrong(&path, "a string", &other)),
    };
    texts.into_iter().map(text).collect()
}

/// The choice, and whether it forbids parallel calls.
fn tool_choice(reader: &mut Reader) -> Result<(Option<ToolChoice>, bool), RequestError> {
    let Some(mut choice) = reader.object("tool_choice")? else { return Ok((None, false)) };
    let one_at_most = choice.flag("disable_parallel_tool_use")?.unwrap_or(false);
    match choice.text("type")?.as_str() {
        "auto" => Ok((Some(ToolChoice::Auto), one_at_most)),
        "any" => Ok((Some(ToolChoice::Any), one_at_most)),
        "tool" => Ok((Some(ToolChoice::Tool(choice.text("name")?)), one_at_most)),
        "none" => Ok((Some(ToolChoice::None), one_at_most)),
        _ => Err(RequestError::new(&choice.at("type"), "must be \"auto\", \"any\", \"tool\" or \"none\"")),
    }
}

fn thinking(reader: &mut Reader) -> Result<Option<Thinking>, RequestError> {
    let Some(mut thinking) = reader.object("thinking")? else { return Ok(None) };
    match thinking.text("type")?.as_str() {
        "disabled" => Ok(Some(Thinking::Disabled)),
        "enabled" | "adaptive" => Ok(Some(Thinking::Enabled)),
        _ => Err(RequestError::new(&thinking.at("type"), "must be \"enabled\", \"adaptive\" or \"disabled\"")),
    }
}
