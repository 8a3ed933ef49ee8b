//! Header names that gateway and neuron agree on.

use crate::harness::Usage;

/// The id of a request, from the client or drawn by the first that sees it; the same in every log and answer.
pub const REQUEST_ID: &str = "x-request-id";

/// A client's id is taken when it is short and plain enough to stand in a log line.
pub fn is_request_id(id: &str) -> bool {
    const LEN_MAX: usize = 128;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/=+@".contains(&byte);
    !id.is_empty() && id.len() <= LEN_MAX && id.bytes().all(plain)
}

/// What a generation used: a header of a whole answer, a trailer of a streamed one. It lets the gateway meter without reading
/// a body; it is sent only where the request says `te: trailers`, and the gateway never passes it on.
pub const USAGE: &str = "x-neuron-usage";

/// The value of [`USAGE`]; thoughts are metered as what they are, tokens generated.
pub fn encode_usage(usage: &Usage) -> String {
    format!("prompt={};cached={};completion={}", usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
}

/// Reads what [`encode_usage`] wrote; `None` for anything else.
pub fn decode_usage(value: &str) -> Option<Usage> {
    let mut fields = value.split(';');
    let mut next = |name: &str| fields.next()?.strip_prefix(name)?.strip_prefix('=')?.parse().ok();
    let (prompt_tokens, cached_tokens, completion_tokens) = (next("prompt")?, next("cached")?, next("completion")?);
    Some(Usage { prompt_tokens, cached_tokens, completion_tokens, ..Usage::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_survives_the_header() {
        let usage = Usage { prompt_tokens: 12, cached_tokens: 8, completion_tokens: 40, ..Usage::default() };
        assert_eq!(decode_usage(&encode_usage(&usage)), Some(usage));
        for bad in ["", "prompt=1", "prompt=1;cached=2;completion=x", "cached=1;prompt=2;completion=3"] {
            assert_eq!(decode_usage(bad), None, "{bad}");
        }
    }
}
