//! `generation_config.json`: how the checkpoint's authors would sample.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use cortex_core::SamplingDefaults;
use serde::Deserialize;

use crate::error::LoadError;

#[derive(Default, Deserialize)]
struct File {
    #[serde(default)]
    do_sample: bool,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
}

/// The defaults of the checkpoint in `folder`. Without a file: plain sampling at temperature 1, as OpenAI's API documents.
pub fn sampling_defaults(folder: &Path) -> Result<SamplingDefaults, LoadError> {
    let file = folder.join("generation_config.json");
    match fs::read_to_string(&file) {
        Ok(text) => parse(&text).map_err(|error| LoadError::Malformed { file, what: error.to_string() }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(SamplingDefaults::default()),
        Err(source) => Err(LoadError::Unreadable { file, source }),
    }
}

/// transformers decodes greedily unless the file says `do_sample`.
fn parse(text: &str) -> Result<SamplingDefaults, serde_json::Error> {
    let File { do_sample, temperature, top_p, top_k, min_p, repetition_penalty } = serde_json::from_str(text)?;
    let sampled = |value: Option<f32>| value.filter(|_| do_sample);
    Ok(SamplingDefaults {
        greedy: !do_sample,
        temperature: sampled(temperature),
        top_p: sampled(top_p),
        top_k: top_k.filter(|_| do_sample),
        min_p: sampled(min_p),
        repetition_penalty,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_do_sample_the_model_is_greedy() {
        let greedy = parse(r#"{"eos_token_id": [1, 2], "do_sample": false, "temperature": 0.7}"#).unwrap();
        assert_eq!(greedy, SamplingDefaults { greedy: true, ..Default::default() });
        let sampling = parse(r#"{"do_sample": true, "temperature": 0.7, "top_k": 20}"#).unwrap();
        assert_eq!((sampling.greedy, sampling.temperature, sampling.top_k), (false, Some(0.7), Some(20)));
        assert!(parse(r#"{"temperature": "hot"}"#).is_err());
    }
}
