//! The options that `/v1/chat/completions` and `/v1/completions` share.

use serde_json::{Map, Value};

use super::ApiError;
use super::fields::{Fields, wrong_type, wrong_value};
use crate::sampling::SamplingRequest;

/// Most choices of one request.
pub const CHOICES_MAX: i64 = 8;
/// Most stop texts of one request.
pub const STOPS_MAX: usize = 16;
/// Most alternatives reported for each token.
pub const TOP_LOGPROBS_MAX: i64 = 20;

/// How to generate, and how to answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerateOptions {
    /// How to choose tokens.
    pub sampling: SamplingRequest,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// Longest answer in tokens; 0 asks for none.
    pub max_tokens: Option<u32>,
    /// Report log-probabilities, with this many alternatives.
    pub logprobs: Option<u8>,
    /// Report them of the prompt's tokens, too.
    pub prompt_logprobs: bool,
    /// Answers to generate for each prompt; choice `i` uses `seed + i`.
    pub n: u32,
    /// Answer in server-sent events.
    pub stream: bool,
    /// End the stream with a chunk that tells the usage.
    pub include_usage: bool,
    /// The first chunk of each choice tells the tokens of the prompt, which some dialects must say before the answer.
    pub prompt_usage: bool,
}

impl GenerateOptions {
    /// Takes the shared options out of `fields`; `logprobs` is left to the dialect, because chat and plain completions differ in it. `max_tokens`
    /// is at least `tokens_min`.
    pub fn take(fields: &mut Fields, tokens_min: i64) -> Result<Self, ApiError> {
        let max_tokens = token_limit(fields, "max_tokens", tokens_min)?;
        let stream_options = fields.object("stream_options")?.unwrap_or_default();
        Ok(Self {
            sampling: sampling(fields)?,
            stop: stop(fields)?,
            max_tokens: token_limit(fields, "max_completion_tokens", tokens_min)?.or(max_tokens),
            logprobs: None,
            prompt_logprobs: false,
            n: fields.integer("n", 1..=CHOICES_MAX)?.unwrap_or(1) as u32,
            stream: fields.flag("stream")?.unwrap_or(false),
            include_usage: stream_option(&stream_options, "include_usage")?,
            prompt_usage: stream_option(&stream_options, "prompt_usage")?,
        })
    }
}

fn token_limit(fields: &mut Fields, name: &str, min: i64) -> Result<Option<u32>, ApiError> {
    Ok(fields.integer(name, min..=i64::MAX)?.map(|limit| u32::try_from(limit).unwrap_or(u32::MAX)))
}

fn sampling(fields: &mut Fields) -> Result<SamplingRequest, ApiError> {
    Ok(SamplingRequest {
        temperature: fields.number("temperature", 0.0..=2.0)?,
        top_p: fields.number("top_p", 0.0..=1.0)?,
        // -1 is how vLLM's users write "all".
        top_k: fields.integer("top_k", -1..=i64::from(u32::MAX))?.map(|k| k.max(0) as u32),
        min_p: fields.number("min_p", 0.0..=1.0)?,
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?,
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?,
        repetition_penalty: fields.number("repetition_penalty", 0.01..=10.0)?,
        logit_bias: logit_bias(fields)?,
        seed: seed(fields)?,
        ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
    })
}

/// Any 64-bit number: a negative one is as good a seed as its two's complement.
fn seed(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    match fields.take("seed") {
        None => Ok(None),
        Some(value) => match value.as_u64().or_else(|| value.as_i64().map(|seed| seed as u64)) {
            Some(seed) => Ok(Some(seed)),
            None => Err(wrong_type("seed", "an integer", &value)),
        },
    }
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let texts = match fields.take("stop") {
        None => Vec::new(),
        Some(Value::Array(items)) => items,
        Some(one) => vec![one],
    };
    if texts.len() > STOPS_MAX {
        return Err(wrong_value("stop", &format!("must hold at most {STOPS_MAX} texts"), &texts.len().into()));
    }
    texts
        .into_iter()
        .map(|text| match text {
            Value::String(text) if text.is_empty() => Err(wrong_value("stop", "must not hold an empty text", &Value::String(text))),
            Value::String(text) => Ok(text),
            other => Err(wrong_type("stop", "a string or an array of strings", &other)),
        })
        .collect()
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(biases) = fields.object("logit_bias")? else { return Ok(Vec::new()) };
    biases
        .into_iter()
        .map(|(token, bias)| {
            let Ok(token) = token.parse::<u32>() else {
                return Err(wrong_value("logit_bias", "must map token ids to numbers", &Value::String(token)));
            };
            match bias.as_f64() {
                Some(bias) if (-100.0..=100.0).contains(&bias) => Ok((token, bias as f32)),
                Some(_) => Err(wrong_value("logit_bias", "must hold numbers between -100 and 100", &bias)),
                None => Err(wrong_type("logit_bias", "a map from token ids to numbers", &bias)),
            }
        })
        .collect()
}

fn stream_option(options: &Map<String, Value>, name: &str) -> Result<bool, ApiError> {
    match options.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => Err(wrong_type(&format!("stream_options.{name}"), "true or false", other)),
    }
}
