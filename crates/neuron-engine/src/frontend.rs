//! From a request to the ids that the model sees: template, tokenizer, pictures, limits. No tensors.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use cortex_core::harness::{AnswerFormat, ToolChoice};
use cortex_core::{ChatPrompt, HarnessError, Prompt, SamplingDefaults};

use crate::error::LoadError;
use crate::generation_config::sampling_defaults;
use crate::grammar::{Constraint, Grammars, Rules};
use crate::image::positions::{Run, rope_index};
use crate::image::{EncodedImage, ImageProcessor, PreparedImage};
use crate::models::EncoderInput;
use crate::models::config::ModelConfig;
use crate::sequence::ImageSpan;
use crate::text::chat_template::ChatTemplate;
use crate::text::parser::{AnswerParser, Start};
use crate::text::tokenizer::Tokenizer;

/// What a checkpoint brings for text and pictures.
pub struct Frontend {
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    vision: Option<Vision>,
    defaults: SamplingDefaults,
    vocabulary: usize,
    /// Made when the first answer is held to a form: it takes a while for a large vocabulary.
    grammars: OnceLock<Result<Grammars, String>>,
}

struct Vision {
    processor: ImageProcessor,
    image_token: u32,
    positions: RopePositions,
}

/// How pictures are placed in the model's positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RopePositions {
    /// Rows and columns (M-RoPE), as the models were trained.
    #[default]
    Spatial,
    /// One after the other, like text: wrong, and kept to show the difference.
    Sequential,
}

/// A prompt in the model's terms.
#[derive(Debug, Default)]
pub struct PreparedPrompt {
    /// Token ids; each picture has as many image tokens as it has merged patches.
    pub ids: Vec<u32>,
    /// The pictures, in order.
    pub images: Vec<Arc<PreparedImage>>,
    /// Where they stand.
    pub spans: Vec<ImageSpan>,
    /// Positions of the prompt; absent when they just count up.
    pub positions: Option<Arc<[[u32; 3]]>>,
    /// What to add to an index behind the prompt.
    pub rope_delta: i32,
    /// Reads thoughts and calls out of the answer.
    pub parser: AnswerParser,
    /// Holds the answer to the form that was asked.
    pub constraint: Option<Constraint>,
}

/// What stands before the text before a gap, before the text behind it, and before what fills it.
const INFILL_TOKENS: [&str; 3] = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"];

/// How an answer is written, read and held.
type Answering = (AnswerParser, Option<Constraint>);

impl Frontend {
    /// Reads the tokenizer, the template, the sampling defaults, and for a vision model the image processor.
    pub fn open(folder: &Path, config: &ModelConfig, positions: RopePositions) -> Result<Self, LoadError> {
        let vision = config.vision.as_ref().map(|vision| {
            let processor = ImageProcessor::from_folder(folder)?;
            Ok::<_, LoadError>(Vision { processor, image_token: vision.image_token_id, positions })
        });
        Ok(Self {
            tokenizer: Arc::new(Tokenizer::from_folder(folder)?),
            template: ChatTemplate::from_folder(folder)?,
            vision: vision.transpose()?,
            defaults: sampling_defaults(folder)?,
            vocabulary: config.vocab_size,
            grammars: OnceLock::new(),
        })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// What the checkpoint's authors prefer.
    pub fn sampling_defaults(&self) -> &SamplingDefaults {
        &self.defaults
    }

    /// Tokens that end an answer.
    pub fn end_tokens(&self) -> &[u32] {
        self.tokenizer.eos_ids()
    }

    /// True if chat messages can be rendered.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// True if pictures are understood.
    pub fn has_vision(&self) -> bool {
        self.vision.is_some()
    }

    /// Renders and tokenizes, and places the pictures. Takes milliseconds and more: not for an async thread.
    pub fn prepare(&self, prompt: &Prompt, images: &[EncodedImage]) -> Result<PreparedPrompt, HarnessError> {
        let (ids, (parser, constraint)) = self.tokenize(prompt)?;
        let prepared = match &self.vision {
            Some(vision) => vision.place(ids, images)?,
            None if images.is_empty() => PreparedPrompt { ids, ..Default::default() },
            None => {
                return Err(HarnessError::invalid(
                    "messages",
                    "this model does not see pictures; send text only, or choose a model with the `vision` capability (GET /v1/models)",
                ));
            }
        };
        if prepared.ids.is_empty() {
            return Err(HarnessError::invalid("prompt", "the prompt is empty; send at least one token"));
        }
        Ok(PreparedPrompt { parser, constraint, ..prepared })
    }

    fn tokenize(&self, prompt: &Prompt) -> Result<(Vec<u32>, Answering), HarnessError> {
        match prompt {
            Prompt::Tokens(ids) => self.check_ids(ids).map(|()| (ids.clone(), Answering::default())),
            Prompt::Text(text) => Ok((self.encode(text, true)?, Answering::default())),
            Prompt::Infill { prefix, suffix } => Ok((self.encode(&self.infill(prefix, suffix)?, true)?, Answering::default())),
            Prompt::Chat(chat) => {
                let template = self.template.as_ref().ok_or_else(|| {
                    HarnessError::invalid("messages", "this model has no chat template; use /v1/completions with a plain `prompt`")
                })?;
                let text = template.render(chat).map_err(|error| HarnessError::invalid("messages", error.to_string()))?;
                // The template writes the special tokens itself.
                let (ids, markup) = (self.encode(&text, false)?, template.markup(chat));
                Ok((ids, (AnswerParser::new(markup, chat, &text), self.constraint(template, chat, &text)?)))
            }
        }
    }

    fn constraint(&self, template: &ChatTemplate, chat: &ChatPrompt, rendered: &str) -> Result<Option<Constraint>, HarnessError> {
        let markup = template.markup(chat);
        let Some(form) = Rules::new(chat, markup.calls).form()? else { return Ok(None) };
        let param = if chat.tool_choice == ToolChoice::Auto && chat.format != AnswerFormat::Text { "response_format" } else { "tools" };
        let refused = |what: &String| HarnessError::invalid(param, format!("the answer cannot be held to this schema: {what}"));
        let grammars = self.grammars.get_or_init(|| Grammars::new(&self.tokenizer, self.vocabulary)).as_ref().map_err(refused)?;
        let start = if markup.thinks { Start::of_prompt(chat, rendered) } else { Start::Speaking };
        grammars.constraint(&form, start, may_think(template, chat, rendered)).map(Some).map_err(|what| refused(&what))
    }

    /// The gap between two texts as Qwen's models know it.
    fn infill(&self, prefix: &str, suffix: &str) -> Result<String, HarnessError> {
        if let Some(missing) = INFILL_TOKENS.into_iter().find(|token| self.tokenizer.token_id(token).is_none()) {
            let message = format!("this model was not made to fill in: its vocabulary has no `{missing}`; send a `prompt` alone");
            return Err(HarnessError::invalid("suffix", message));
        }
        let [before, behind, gap] = INFILL_TOKENS;
        Ok(format!("{before}{prefix}{behind}{suffix}{gap}"))
    }

    fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, HarnessError> {
        self.tokenizer.encode(text, add_special).map_err(|error| HarnessError::invalid("prompt", error.to_string()))
    }

    /// A query and a text as an encoder reads them together.
    pub fn pair(&self, query: &str, document: &str) -> Result<EncoderInput, HarnessError> {
        let pair = self.tokenizer.encode_pair(query, document);
        let (ids, first) = pair.map_err(|error| HarnessError::invalid("documents", error.to_string()))?;
        Ok(EncoderInput { ids, first })
    }

    /// Refuses ids that the model has no embedding for.
    pub fn check_ids(&self, ids: &[u32]) -> Result<(), HarnessError> {
        match ids.iter().find(|&&id| id as usize >= self.vocabulary) {
            Some(id) => {
                Err(HarnessError::invalid("prompt", format!("token id {id} is outside the vocabulary of {} tokens", self.vocabulary)))
            }
            None => Ok(()),
        }
    }
}

/// Whether the model thinks before it answers this. A grammar turns a model away from how it would begin, so that even one that does not think
/// might then begin with a thought, and never end it.
fn may_think(template: &ChatTemplate, chat: &ChatPrompt, rendered: &str) -> bool {
    if let Some(wish) = chat.template_kwargs.get("enable_thinking") {
        return *wish == true;
    }
    // Where forbidding it changes the prompt, it is the model's habit.
    let mut forbidden = chat.clone();
    forbidden.template_kwargs.insert("enable_thinking".into(), false.into());
    template.render(&forbidden).is_ok_and(|text| text != rendered)
}

impl Vision {
    /// Widens each image token to its picture's tokens. On ids, because a text may contain anything.
    fn place(&self, ids: Vec<u32>, images: &[EncodedImage]) -> Result<PreparedPrompt, HarnessError> {
        let places = ids.iter().filter(|&&id| id == self.image_token).count();
        if places != images.len() {
            let message = format!(
                "the messages bring {} pictures, but the prompt has {places} places for pictures; a text must not contain the picture token itself",
                images.len()
            );
            return Err(HarnessError::invalid("messages", message));
        }
        if images.is_empty() {
            return Ok(PreparedPrompt { ids, ..Default::default() });
        }
        let images = images.iter().enumerate().map(|(i, image)| self.prepare(i, image)).collect::<Result<Vec<_>, _>>()?;
        Ok(self.widen(&ids, images))
    }

    fn prepare(&self, index: usize, sent: &EncodedImage) -> Result<Arc<PreparedImage>, HarnessError> {
        let image = self.processor.prepare(&sent.bytes, sent.detail);
        image.map(Arc::new).map_err(|error| HarnessError::invalid("messages", format!("picture {} {error}", index + 1)))
    }

    fn widen(&self, ids: &[u32], images: Vec<Arc<PreparedImage>>) -> PreparedPrompt {
        let mut wide = Vec::new();
        let mut spans = Vec::new();
        let mut next = images.iter();
        for &id in ids {
            match (id == self.image_token).then(|| next.next()).flatten() {
                Some(image) => {
                    spans.push(ImageSpan { start: wide.len(), len: image.tokens(), hash: image.hash });
                    wide.extend(std::iter::repeat_n(id, image.tokens()));
                }
                None => wide.push(id),
            }
        }
        let (positions, rope_delta) = self.positions(wide.len(), &spans, &images);
        PreparedPrompt { ids: wide, images, spans, positions, rope_delta, ..Default::default() }
    }

    fn positions(&self, len: usize, spans: &[ImageSpan], images: &[Arc<PreparedImage>]) -> (Option<Arc<[[u32; 3]]>>, i32) {
        if self.positions == RopePositions::Sequential {
            return (None, 0);
        }
        let runs: Vec<Run> = spans.iter().zip(images).map(|(span, image)| Run { start: span.start, grid: image.grid }).collect();
        let found = rope_index(len, &runs, self.processor.patches().merge);
        (Some(found.rows.into()), found.delta)
    }
}
