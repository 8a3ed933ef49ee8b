//! A conversation to the one text that the model was trained on, as HF's `apply_chat_template` makes it.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use cortex_core::harness::ChatPrompt;
use minijinja::{Environment, Value};
use serde_json::{Map, Value as Json};

use super::arguments;
use super::parser::Markup;
use super::python;
use super::template_env::{Clock, Raised, environment, from_json, from_json_map, without_generation_blocks};
use super::tokenizer::{read_json, read_text, token_text};
use crate::error::LoadError;

/// A model's chat template, compiled once.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    traits: BTreeMap<String, Traits>,
    /// `bos_token`, `eos_token` and so on, which are template variables.
    special_tokens: Map<String, Json>,
}

/// What is known of one template.
#[derive(Clone, Copy, Debug, Default)]
struct Traits {
    markup: Markup,
    /// It takes the arguments of earlier calls as objects only; OpenAI's clients send text.
    object_arguments: bool,
}

/// Why a conversation has no rendering.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The template itself refused, in its author's words.
    #[error("the model's chat template refuses this conversation: {0}")]
    Refused(String),
    /// The template met something that it does not expect.
    #[error("the model's chat template failed: {0}; check the messages' roles and contents against the model's card")]
    Failed(String),
    /// `continue_final_message` does not go with this conversation.
    #[error("`continue_final_message`: {0}")]
    CannotContinue(&'static str),
}

/// A template as found in the checkpoint.
struct Source {
    name: String,
    text: String,
    file: PathBuf,
}

const DEFAULT: &str = "default";
/// Used instead of the default one when a request has tools.
const TOOL_USE: &str = "tool_use";

const SPECIAL_TOKENS: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl ChatTemplate {
    /// Finds the template in a checkpoint; `None` for a model that has none (it completes text, or embeds it).
    ///
    /// `chat_template.jinja` wins over `chat_template.json`, which wins over the key in `tokenizer_config.json`.
    #[expect(clippy::disallowed_methods, reason = "templates tell the model what day it is")]
    pub fn from_folder(folder: &Path) -> Result<Option<Self>, LoadError> {
        Self::with_clock(folder, SystemTime::now)
    }

    fn with_clock(folder: &Path, clock: Clock) -> Result<Option<Self>, LoadError> {
        let sources = find_sources(folder)?;
        if sources.is_empty() {
            return Ok(None);
        }
        let mut env = environment(clock);
        let mut traits = BTreeMap::new();
        for Source { name, text, file } in sources {
            traits.insert(name.clone(), Traits { markup: Markup::of_template(&text), object_arguments: false });
            env.add_template_owned(name, without_generation_blocks(&text))
                .map_err(|e| LoadError::Malformed { file, what: format!("the chat template does not compile: {}", story(&e)) })?;
        }
        let mut found = Self { env, traits, special_tokens: special_tokens(folder)? };
        let wants_objects = |name: &String| arguments::only_objects(|probe| found.render_with(name, probe, false).ok());
        let picky: Vec<String> = found.traits.keys().filter(|name| wants_objects(name)).cloned().collect();
        for (name, traits) in &mut found.traits {
            traits.object_arguments = picky.contains(name);
        }
        Ok(Some(found))
    }

    /// The text of the conversation, ready to be tokenized without adding special tokens.
    pub fn render(&self, prompt: &ChatPrompt) -> Result<String, TemplateError> {
        if prompt.continue_final_message && prompt.add_generation_prompt {
            return Err(TemplateError::CannotContinue("it excludes `add_generation_prompt`: the answer goes on in the last message"));
        }
        let name = self.name_for(prompt);
        let rendered = self.render_with(name, prompt, self.traits_of(name).object_arguments).map_err(|e| template_error(&e))?;
        if prompt.continue_final_message { cut_after_last_message(rendered, prompt) } else { Ok(rendered) }
    }

    /// How the model's answers to `prompt` are written.
    pub fn markup(&self, prompt: &ChatPrompt) -> Markup {
        self.traits_of(self.name_for(prompt)).markup
    }

    fn name_for(&self, prompt: &ChatPrompt) -> &'static str {
        if prompt.tools.is_some() && self.traits.contains_key(TOOL_USE) { TOOL_USE } else { DEFAULT }
    }

    fn traits_of(&self, name: &str) -> Traits {
        self.traits.get(name).copied().unwrap_or_default()
    }

    fn render_with(&self, name: &str, prompt: &ChatPrompt, object_arguments: bool) -> Result<String, minijinja::Error> {
        self.env.get_template(name)?.render(self.context(prompt, object_arguments))
    }

    /// Later variables win over earlier ones.
    fn context(&self, prompt: &ChatPrompt, object_arguments: bool) -> Value {
        let message = |message: &Map<String, Json>| match object_arguments {
            true => from_json_map(&arguments::as_objects(message)),
            false => from_json_map(message),
        };
        let messages: Value = prompt.messages.iter().map(message).collect();
        let tools = prompt.tools.as_ref().map_or(Value::from(()), |tools| tools.iter().map(from_json).collect());
        let named = |map: &Map<String, Json>| map.iter().map(|(key, value)| (key.clone(), from_json(value))).collect::<Vec<_>>();
        let mut variables = vec![("documents".to_owned(), Value::from(()))];
        variables.extend(named(&self.special_tokens));
        variables.extend(named(&prompt.template_kwargs));
        variables.push(("messages".to_owned(), messages));
        variables.push(("tools".to_owned(), tools));
        variables.push(("add_generation_prompt".to_owned(), Value::from(prompt.add_generation_prompt)));
        Value::from_pairs(variables)
    }
}

/// Cuts behind the last message's text, so that the model goes on with it.
fn cut_after_last_message(mut rendered: String, prompt: &ChatPrompt) -> Result<String, TemplateError> {
    let text = last_text(prompt).ok_or(TemplateError::CannotContinue("the last message has no text to go on with"))?;
    let trimmed = text.trim_matches(python::is_space);
    let start = rendered.rfind(trimmed).ok_or(TemplateError::CannotContinue("the chat template leaves out the last message's text"))?;
    // Many templates trim messages; then so do we.
    let kept = if rendered[start..].starts_with(text) { text } else { trimmed };
    rendered.truncate(start + kept.len());
    Ok(rendered)
}

/// The text of the last message.
pub(super) fn last_text(prompt: &ChatPrompt) -> Option<&str> {
    match prompt.messages.last()?.get("content")? {
        Json::String(text) => Some(text),
        Json::Array(parts) => parts.iter().rev().find_map(|part| part.get("text")?.as_str()),
        _ => None,
    }
}

fn find_sources(folder: &Path) -> Result<Vec<Source>, LoadError> {
    let file = folder.join("chat_template.jinja");
    if let Some(text) = read_text(&file)? {
        let mut sources = additional_sources(folder)?;
        sources.push(Source { name: DEFAULT.into(), text, file });
        return Ok(sources);
    }
    for name in ["chat_template.json", "tokenizer_config.json"] {
        let file = folder.join(name);
        let Some(json) = read_json(&file)? else { continue };
        let found = &json["chat_template"];
        if !found.is_null() {
            let named = named_templates(found).ok_or_else(|| LoadError::Malformed {
                file: file.clone(),
                what: "`chat_template` must be a text or a list of {\"name\", \"template\"}, one of them `default`".into(),
            })?;
            return Ok(named.into_iter().map(|(name, text)| Source { name, text, file: file.clone() }).collect());
        }
    }
    Ok(Vec::new())
}

/// `additional_chat_templates/<name>.jinja`.
fn additional_sources(folder: &Path) -> Result<Vec<Source>, LoadError> {
    let folder = folder.join("additional_chat_templates");
    let Ok(entries) = fs::read_dir(&folder) else { return Ok(Vec::new()) };
    let files = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.extension().is_some_and(|e| e == "jinja"));
    let mut sources = Vec::new();
    for file in files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        sources.extend(read_text(&file)?.map(|text| Source { name, text, file }));
    }
    Ok(sources)
}

fn named_templates(json: &Json) -> Option<Vec<(String, String)>> {
    let text = |json: &Json| json.as_str().map(str::to_owned);
    let named: Vec<(String, String)> = match json {
        Json::String(one) => vec![(DEFAULT.to_owned(), one.clone())],
        Json::Array(many) => many.iter().map(|entry| Some((text(&entry["name"])?, text(&entry["template"])?))).collect::<Option<_>>()?,
        Json::Object(many) => many.iter().map(|(name, template)| Some((name.clone(), text(template)?))).collect::<Option<_>>()?,
        _ => return None,
    };
    named.iter().any(|(name, _)| name == DEFAULT).then_some(named)
}

/// From `tokenizer_config.json`; what it does not name, from the older `special_tokens_map.json`.
fn special_tokens(folder: &Path) -> Result<Map<String, Json>, LoadError> {
    let mut tokens = Map::new();
    for name in ["tokenizer_config.json", "special_tokens_map.json"] {
        let Some(json) = read_json(&folder.join(name))? else { continue };
        for key in SPECIAL_TOKENS {
            if let (false, Some(text)) = (tokens.contains_key(key), token_text(&json[key])) {
                tokens.insert(key.into(), text.into());
            }
        }
        let key = "additional_special_tokens";
        if let (false, Some(many)) = (tokens.contains_key(key), json[key].as_array()) {
            tokens.insert(key.into(), many.iter().filter_map(token_text).collect::<Vec<_>>().into());
        }
    }
    Ok(tokens)
}

fn template_error(error: &minijinja::Error) -> TemplateError {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return TemplateError::Refused(message.clone());
        }
        source = cause.source();
    }
    TemplateError::Failed(story(error))
}

/// The error with its place, without the template's source.
fn story(error: &minijinja::Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
    error.line().map_or(what.clone(), |line| format!("{what} (line {line})"))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn the_date_comes_from_the_clock() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("chat_template.jinja"), "{{ strftime_now('%Y') }}").unwrap();
        let template = ChatTemplate::with_clock(folder.path(), || UNIX_EPOCH).unwrap().unwrap();
        assert_eq!(template.render(&ChatPrompt::default()).unwrap(), "1970");
    }
}
