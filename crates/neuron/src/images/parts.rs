//! Which parts of a conversation are pictures, and where each says its bytes are.

use cortex_core::HarnessError;
use neuron_engine::image::Detail;
use reqwest::Url;
use serde_json::{Map, Value};

/// One picture of a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    /// `messages[2].content[0]`, for errors.
    pub(crate) place: String,
    pub(crate) source: PartSource,
    pub(crate) detail: Detail,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PartSource {
    /// The base64 text of a data URL.
    Data(String),
    /// To be fetched.
    Web(Url),
}

/// The pictures of all messages, tool results included, in the order in which a chat template meets them.
pub(crate) fn picture_parts(messages: &[Map<String, Value>]) -> Result<Vec<Part>, HarnessError> {
    let mut found = Vec::new();
    for (i, message) in messages.iter().enumerate() {
        walk(message.get("content"), &format!("messages[{i}].content"), &mut found)?;
    }
    Ok(found)
}

fn walk(content: Option<&Value>, place: &str, found: &mut Vec<Part>) -> Result<(), HarnessError> {
    let parts = content.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    for (j, part) in parts.iter().enumerate() {
        let place = format!("{place}[{j}]");
        match part.get("type").and_then(Value::as_str) {
            Some("image_url" | "image") => {
                let source = source(part).map_err(|problem| HarnessError::invalid(&place, problem))?;
                let detail = detail(part).map_err(|problem| HarnessError::invalid(format!("{place}.image_url.detail"), problem))?;
                found.push(Part { place, source, detail });
            }
            Some("tool_result") => walk(part.get("content"), &format!("{place}.content"), found)?,
            Some(kind @ ("video" | "video_url" | "input_audio" | "audio_url")) => {
                return Err(HarnessError::invalid(place, format!("`{kind}` parts are not supported; send text and pictures")));
            }
            _ => {}
        }
    }
    Ok(())
}

/// OpenAI's `{"image_url": {"url": ..}}`, its short form `{"image_url": ".."}`, and Qwen's `{"image": ".."}`.
fn source(part: &Value) -> Result<PartSource, String> {
    let holder = ["image_url", "image", "url"].iter().find_map(|key| part.get(key));
    let url = holder.and_then(|holder| holder.as_str().or_else(|| holder.get("url")?.as_str()));
    let url =
        url.ok_or("the picture has no url: write {\"type\": \"image_url\", \"image_url\": {\"url\": \"data:image/png;base64,..\"}}")?;
    match url.split_once(':').map(|(scheme, rest)| (scheme.to_ascii_lowercase(), rest)) {
        Some((scheme, rest)) if scheme == "data" => data(rest),
        Some((scheme, _)) if scheme == "http" || scheme == "https" => {
            Url::parse(url).map(PartSource::Web).map_err(|error| format!("the picture's url is broken: {error}"))
        }
        Some((scheme, _)) if scheme.len() <= 16 => Err(format!("pictures cannot come from `{scheme}:`; send a data:, http: or https: url")),
        _ => Err("the picture's url has no scheme; send a data:, http: or https: url".to_owned()),
    }
}

/// OpenAI's `detail`, beside the url or, in the forms that hold no object, in the part itself.
fn detail(part: &Value) -> Result<Detail, String> {
    let said = part.pointer("/image_url/detail").or_else(|| part.get("detail")).filter(|said| !said.is_null());
    let known = said.map_or(Some(Detail::default()), |said| Detail::of_word(said.as_str()?));
    known.ok_or_else(|| "`detail` must be \"low\", \"high\" or \"auto\"".to_owned())
}

/// What follows `data:`.
fn data(rest: &str) -> Result<PartSource, String> {
    let (kind, body) = rest.split_once(',').ok_or("the picture's data: url has no comma before its bytes")?;
    let mut words = kind.split(';').map(str::trim);
    let media = words.next().unwrap_or("").to_ascii_lowercase();
    if !media.is_empty() && !media.starts_with("image/") && media != "application/octet-stream" {
        return Err(format!("`{media}` is no picture; send data:image/png, image/jpeg, image/webp or image/gif"));
    }
    if !words.any(|word| word.eq_ignore_ascii_case("base64")) {
        return Err("the picture's data: url must be base64: data:image/png;base64,..".to_owned());
    }
    Ok(PartSource::Data(body.to_owned()))
}
