//! The one look that the gateway takes into a request's body: which model, streamed or not, and what tells related requests
//! and large ones apart. Everything else is left to the node.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use cortex_core::ModelId;
use cortex_core::openai::ApiError;
use serde::Deserialize;
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Messages that tell one conversation from another: the system prompt and what the user asked first stay while it goes on.
const LEADING_MESSAGES: usize = 2;
/// Of a text prompt, these many bytes tell.
const LEADING_BYTES: usize = 1024;
/// Requests that name no limit are taken to generate so many tokens.
const ANSWER_TOKENS_GUESS: u64 = 256;
/// No request counts for more, whatever limit it names or picture it carries.
const TOKENS_MAX: u64 = 32_768;

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scan {
    pub(crate) model: ModelId,
    pub(crate) stream: bool,
    /// Requests with the same one share a prefix, most likely: they are best sent to the same node.
    pub(crate) affinity: Option<u64>,
    /// A rough guess of the work in tokens: prompt and answer.
    pub(crate) tokens: u64,
    /// The client does not mind waiting (`"service_tier": "flex"`).
    pub(crate) patient: bool,
    /// Where the model's JSON string stands, quotes included.
    model_at: Range<usize>,
}

#[derive(Default)]
struct Seen<'a> {
    model: Option<&'a RawValue>,
    stream: Option<bool>,
    session: Option<&'a RawValue>,
    user: Option<&'a RawValue>,
    messages: Option<&'a RawValue>,
    prompt: Option<&'a RawValue>,
    answer_tokens: Option<&'a RawValue>,
    service_tier: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Field {
    Model,
    Stream,
    PromptCacheKey,
    User,
    Messages,
    Prompt,
    MaxTokens,
    MaxCompletionTokens,
    ServiceTier,
    #[serde(other)]
    Other,
}

impl<'de> Deserialize<'de> for Seen<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(SeenVisitor)
    }
}

struct SeenVisitor;

impl<'de> Visitor<'de> for SeenVisitor {
    type Value = Seen<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    /// Only the fields that the gateway acts on are judged; of those that merely hint, the node is the judge.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Seen<'de>, A::Error> {
        let mut seen = Seen::default();
        let mut stream_seen = false;
        while let Some(field) = map.next_key::<Field>()? {
            match field {
                Field::Model if seen.model.is_some() => return Err(A::Error::duplicate_field("model")),
                Field::Stream if stream_seen => return Err(A::Error::duplicate_field("stream")),
                Field::Model => seen.model = map.next_value()?,
                Field::Stream => (seen.stream, stream_seen) = (map.next_value()?, true),
                Field::PromptCacheKey => seen.session = map.next_value()?,
                Field::User => seen.user = map.next_value()?,
                Field::Messages => seen.messages = map.next_value()?,
                Field::Prompt => seen.prompt = map.next_value()?,
                Field::MaxTokens | Field::MaxCompletionTokens => seen.answer_tokens = map.next_value()?,
                Field::ServiceTier => seen.service_tier = map.next_value()?,
                Field::Other => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(seen)
    }
}

impl Seen<'_> {
    /// The surest sign first.
    fn affinity(&self) -> Option<u64> {
        let texts = |value: &RawValue| value.get().starts_with('"').then(|| xxh3_64(value.get().as_bytes()));
        let messages = || self.messages.map(leading_messages);
        let prompt = || self.prompt.map(|prompt| &prompt.get().as_bytes()[..prompt.get().len().min(LEADING_BYTES)]).map(xxh3_64);
        self.session.and_then(texts).or_else(messages).or_else(prompt).or_else(|| self.user.and_then(texts))
    }

    fn tokens(&self, body_bytes: usize) -> u64 {
        const BYTES_PER_TOKEN: u64 = 4;
        let answer = self.answer_tokens.and_then(|value| value.get().parse().ok()).unwrap_or(ANSWER_TOKENS_GUESS);
        (body_bytes as u64 / BYTES_PER_TOKEN).saturating_add(answer).clamp(1, TOKENS_MAX)
    }
}

/// A hash over the leading elements of a JSON array as they are written. What follows them is not looked at again.
fn leading_messages(messages: &RawValue) -> u64 {
    struct Leading<'a>(&'a mut Xxh3);
    impl<'de> Visitor<'de> for Leading<'_> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut messages: A) -> Result<(), A::Error> {
            for _ in 0..LEADING_MESSAGES {
                let Some(message) = messages.next_element::<&RawValue>()? else { break };
                self.0.update(message.get().as_bytes());
            }
            Ok(())
        }
    }
    let mut hash = Xxh3::new();
    // An error means that there is more, or that it is no array; either way the hash stands.
    let _ = serde::Deserializer::deserialize_seq(&mut serde_json::Deserializer::from_str(messages.get()), Leading(&mut hash));
    hash.digest()
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
    Ok(Scan {
        model: model.into(),
        stream: seen.stream.unwrap_or(false),
        affinity: seen.affinity(),
        tokens: seen.tokens(body.len()),
        patient: seen.service_tier.is_some_and(|tier| tier.get() == r#""flex""#),
        model_at: start..start + raw.get().len(),
    })
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
    use proptest::prelude::*;
    use serde_json::Value;

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
    fn requests_of_one_conversation_have_one_affinity() {
        let affinity = |body: &str| scan(body.as_bytes()).expect(body).affinity;
        let turn = |rest: &str| affinity(&format!(r#"{{"model":"m","messages":[{{"role":"system"}},{{"content":"a"}}{rest}]}}"#));
        assert_eq!(turn(""), turn(r#",{"content":"b"},{"content":"c"}"#));
        assert_ne!(turn(""), affinity(r#"{"model":"m","messages":[{"role":"system"},{"content":"z"}]}"#));
        let keyed = |key: &str, text: &str| affinity(&format!(r#"{{"model":"m","prompt_cache_key":"{key}","messages":["{text}"]}}"#));
        assert_eq!(keyed("k", "a"), keyed("k", "b"));
        assert_ne!(keyed("k", "a"), keyed("l", "a"));
        assert_eq!(affinity(r#"{"model":"m","user":"u"}"#), affinity(r#"{"user":"u","model":"n","stream":true}"#));
        assert_eq!(affinity(r#"{"model":"m"}"#), None);
        for odd in [r#"{"model":"m","messages":7,"user":{},"max_tokens":"x"}"#, r#"{"model":"m","user":1,"user":2}"#] {
            let _ = affinity(odd); // the node says what is wrong with it
        }
    }

    #[test]
    fn work_is_guessed_from_the_body_and_the_limit_it_names() {
        let tokens = |body: &str| scan(body.as_bytes()).expect(body).tokens;
        assert_eq!(tokens(r#"{"model":"m","max_tokens":1000}"#), 1000 + 31 / 4);
        assert_eq!(tokens(r#"{"model":"m"}"#), ANSWER_TOKENS_GUESS + 13 / 4);
        assert_eq!(tokens(r#"{"model":"m","max_completion_tokens":9999999}"#), TOKENS_MAX);
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

    /// Any JSON, not too deep.
    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(".{0,8}", inner, 0..5).prop_map(|fields| fields.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), cut: prop::sample::Index) {
            let _ = scan(&bytes);
            // Inside something that is nearly right, too.
            let whole = br#"{"model":"m","stream":true,"messages":[{"role":"user","content":"a"}],"max_tokens":5}"#;
            let (before, after) = whole.split_at(cut.index(whole.len()));
            let _ = scan(&[before, &bytes, after].concat());
        }

        #[test]
        fn a_splice_changes_the_model_and_nothing_else(
            fields in prop::collection::btree_map("(user|messages|prompt|max_tokens|service_tier|.{0,8})", json(), 0..6),
            model in ".{0,20}",
            other in ".{0,20}",
            pretty: bool,
        ) {
            let mut whole: serde_json::Map<String, Value> = fields.into_iter().collect();
            whole.remove("stream");
            whole.insert("model".into(), model.as_str().into());
            let body = if pretty { serde_json::to_vec_pretty(&whole) } else { serde_json::to_vec(&whole) }.unwrap();
            let seen = scan(&body).unwrap();
            prop_assert_eq!(seen.model.as_str(), &model);
            prop_assert!((1..=TOKENS_MAX).contains(&seen.tokens));
            whole.insert("model".into(), other.as_str().into());
            prop_assert_eq!(serde_json::from_slice::<Value>(&seen.splice(&body, &other.into())).unwrap(), Value::Object(whole));
        }
    }
}
