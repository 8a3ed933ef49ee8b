//! `traceparent`, as W3C's Trace Context has it: whose work a request is part of.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{SpanId, TraceFlags, TraceId};

pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// A span, named by its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) trace: TraceId,
    pub(super) span: SpanId,
    /// Whether somebody wants to see it.
    pub(super) sampled: bool,
}

impl Context {
    /// A span of a trace of its own.
    pub(super) fn root() -> Self {
        Self { trace: TraceId::from_bytes(uuid::Uuid::new_v4().into_bytes()), span: span_id(), sampled: true }
    }

    /// A span within this one.
    pub(super) fn child(self) -> Self {
        Self { span: span_id(), ..self }
    }

    /// What the client sent; `None` for what the standard has no meaning for.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let value = values.next().filter(|_| values.next().is_none())?;
        Self::parse(value.to_str().ok()?)
    }

    /// `version-trace-span-flags`, in lower case; versions to come may say more after that.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let [version, trace, span, flags] = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
        let known = version != "ff" && (version != "00" || parts.next().is_none());
        let digits = |part: &str, count: usize| part.len() == count && part.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        if !known || !digits(version, 2) || !digits(trace, 32) || !digits(span, 16) || !digits(flags, 2) {
            return None;
        }
        let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
        let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
        (trace != TraceId::INVALID && span != SpanId::INVALID).then_some(Self { trace, span, sampled: flags.is_sampled() })
    }

    /// For the node.
    pub(super) fn header(self) -> HeaderValue {
        let text = format!("00-{}-{}-{:02x}", self.trace, self.span, u8::from(self.sampled));
        HeaderValue::try_from(text).expect("hexadecimal digits and dashes")
    }
}

fn span_id() -> SpanId {
    let [bytes @ .., _, _, _, _, _, _, _, _] = uuid::Uuid::new_v4().into_bytes();
    SpanId::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_standard_allows_is_taken_for_a_parent() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let span = "00f067aa0ba902b7";
        let cases = [
            (format!("00-{trace}-{span}-01"), Some(true)),
            (format!("00-{trace}-{span}-00"), Some(false)),
            (format!("00-{trace}-{span}-03"), Some(true)), // flags that are not known do not count
            (format!("01-{trace}-{span}-01-more"), Some(true)),
            (format!("00-{trace}-{span}-01-more"), None),
            (format!("ff-{trace}-{span}-01"), None),
            (format!("00-{}-{span}-01", "0".repeat(32)), None),
            (format!("00-{trace}-{}-01", "0".repeat(16)), None),
            (format!("00-{}-{span}-01", trace.to_uppercase()), None),
            (format!("00-{trace}-{span}"), None),
            (format!("00-{trace}-{span}-1"), None),
            (format!("0-{trace}-{span}-01"), None),
            (format!("00-+{}-{span}-01", &trace[1..]), None),
            (String::new(), None),
        ];
        for (text, sampled) in cases {
            let parsed = Context::parse(&text);
            assert_eq!(parsed.map(|context| context.sampled), sampled, "{text}");
            if let Some(context) = parsed {
                assert_eq!((context.trace.to_string(), context.span.to_string()), (trace.into(), span.into()));
            }
        }
        let mut headers = HeaderMap::new();
        for value in [format!("00-{trace}-{span}-01"), format!("00-{trace}-{span}-00")] {
            headers.append(TRACEPARENT, value.parse().unwrap());
        }
        assert_eq!(Context::of(&headers), None, "two parents are none");
    }

    #[test]
    fn a_span_for_the_node_is_a_new_one_of_the_same_trace() {
        let root = Context::root();
        let child = root.child();
        assert_eq!((child.trace, child.sampled), (root.trace, true));
        assert_ne!(child.span, root.span);
        assert_eq!(Context::parse(root.header().to_str().unwrap()), Some(root));
    }
}
