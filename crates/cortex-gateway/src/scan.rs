//! The one look that the gateway takes into a request's body: which model, and streamed or not. Everything else is left to the node.

use std::ops::Range;

use bytes::Bytes;
use cortex_core::ModelId;
use cortex_core::openai::ApiError;
use serde::Deserialize;
use serde_json::value::RawValue;

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scan {
    pub(crate) model: ModelId,
    pub(crate) stream: bool,
    /// Where the model's JSON string stands, quotes included.
    model_at: Range<usize>,
}

#[derive(Deserialize)]
struct Seen<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    stream: Option<bool>,
}

/// Reads `body` once, without keeping any of it.
///
/// # Errors
/// 400 that says what is wrong: no JSON object, no `model`, a field of the wrong type or given twice.
pub(crate) fn scan(body: &[u8]) -> Result<Scan, ApiError> {
    if !body.trim_ascii_start().starts_with(b"{") {
        let found = if body.is_empty() { "it is empty" } else { "it does not begin with `{`" };
        return Err(ApiError::invalid(format!("The body must be a JSON object with `model`; {found}.")));
    }
    let seen: Seen<'_> = serde_json::from_slice(body).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => ApiError::invalid(format!("The body cannot be used: {error}.")),
        _ => ApiError::invalid(format!("The body is not valid JSON: {error}.")),
    })?;
    let Some(raw) = seen.model else {
        let message = "The body names no `model`. GET /v1/models lists what is served.";
        return Err(ApiError::new(400, "invalid_request_error", Some("missing_required_parameter"), message).with_param("model"));
    };
    let model: String = serde_json::from_str(raw.get()).map_err(|error| {
        let message = format!("`model` must be a string: {error}.");
        ApiError::invalid(message).with_param("model")
    })?;
    let start = raw.get().as_ptr().addr() - body.as_ptr().addr();
    Ok(Scan { model: model.into(), stream: seen.stream.unwrap_or(false), model_at: start..start + raw.get().len() })
}

impl Scan {
    /// The body with another model's name in place of the one that stands there; no other byte differs.
    pub(crate) fn splice(&self, body: &[u8], model: &ModelId) -> Bytes {
        let name = serde_json::Value::from(model.as_str()).to_string();
        [&body[..self.model_at.start], name.as_bytes(), &body[self.model_at.end..]].concat().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_and_stream_are_found_wherever_they_stand() {
        let cases = [
            (r#"{"model":"m"}"#, "m", false),
            (r#" { "stream" : true , "x": {"model": 1}, "model" : "a\/b" } "#, "a/b", true),
            (r#"{"model":"é\"","stream":null,"messages":[[[]]]}"#, "é\"", false),
        ];
        for (body, model, stream) in cases {
            let scan = scan(body.as_bytes()).expect(body);
            assert_eq!((scan.model.as_str(), scan.stream), (model, stream), "{body}");
        }
    }

    #[test]
    fn a_splice_changes_the_name_and_nothing_else() {
        let body = r#"{ "a": "\ud83d\ude00", "model" :"fast" , "stream":true}"#.as_bytes();
        let spliced = scan(body).unwrap().splice(body, &"Qwen/\"8B\"".into());
        assert_eq!(&spliced[..], r#"{ "a": "\ud83d\ude00", "model" :"Qwen/\"8B\"" , "stream":true}"#.as_bytes());
    }

    #[test]
    fn what_cannot_be_read_is_refused_in_words() {
        let cases: &[(&[u8], &str)] = &[
            (b"", "it is empty"),
            (b"[]", "does not begin with `{`"),
            (b"{\"model\":", "not valid JSON"),
            (b"{\"model\":\"m\"} x", "not valid JSON"),
            (b"{}", "names no `model`"),
            (b"{\"model\":null}", "names no `model`"),
            (b"{\"model\":7}", "must be a string"),
            (b"{\"model\":\"\\ud800\"}", "must be a string"),
            (b"{\"model\":\"\xff\"}", "not valid JSON"),
            (b"{\"model\":\"a\",\"model\":\"b\"}", "duplicate field `model`"),
            (b"{\"model\":\"a\",\"stream\":\"yes\"}", "expected a boolean"),
        ];
        for (body, says) in cases {
            let error = scan(body).expect_err(&String::from_utf8_lossy(body));
            assert_eq!(error.status, 400);
            assert!(error.body.error.message.contains(says), "{}: {}", String::from_utf8_lossy(body), error.body.error.message);
        }
    }

    #[test]
    fn deep_nesting_is_skipped_without_recursion() {
        let body = format!(r#"{{"x":{}{},"model":"m"}}"#, "[".repeat(200_000), "]".repeat(200_000));
        assert_eq!(scan(body.as_bytes()).unwrap().model.as_str(), "m");
    }
}
