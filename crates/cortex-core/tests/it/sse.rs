//! Server-sent events: the standard's corners, and the same events for any chunking.

use bytes::BytesMut;
use cortex_core::sse::{SseError, SseEvent, SseParser, write_data, write_event};
use proptest::prelude::*;
use serde_json::json;

const EVENT_BYTES_MAX: usize = 64;

type Outcome = (Vec<SseEvent>, Result<(), SseError>);

/// Reads `pieces` one after the other, up to the first error.
fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut parser = SseParser::new(EVENT_BYTES_MAX);
    let mut events = Vec::new();
    let outcome = pieces.into_iter().try_for_each(|piece| parser.push(piece, |event| events.push(event)));
    (events, outcome)
}

fn data(texts: &[&str]) -> Vec<SseEvent> {
    texts.iter().map(|&text| SseEvent { name: String::new(), data: text.into() }).collect()
}

#[test]
fn events_are_read_as_the_standard_says() {
    let cases: &[(&str, &[&str])] = &[
        ("data: a\n\ndata: b\n\n", &["a", "b"]),
        ("data: a\r\n\r\ndata: b\r\rdata: c\n\n", &["a", "b", "c"]),
        ("data:a\n\n", &["a"]),
        ("data:  a\n\n", &[" a"]),
        ("data: one\ndata: two\ndata:\ndata: four\n\n", &["one\ntwo\n\nfour"]),
        (": ping\n\n: pong\ndata: a\n\n", &["a"]),
        ("data\n\n", &[""]),
        ("data:\ndata:\n\n", &["\n"]),
        ("event: x\n\n", &[]),
        ("\n\n\r\n", &[]),
        ("id: 1\nretry: 5\nunknown: x\ndata: a\n\n", &["a"]),
        ("\u{feff}data: a\n\n\u{feff}data: b\n\n", &["a"]),
        ("data: cut off\n", &[]),
        ("data: {\"a\":\"x:y\"}\n\n", &["{\"a\":\"x:y\"}"]),
    ];
    for (text, expected) in cases {
        assert_eq!(read([text.as_bytes()]), (data(expected), Ok(())), "{text:?}");
    }
}

#[test]
fn names_belong_to_their_event_only() {
    let (events, _) = read([&b"event: a\ndata: 1\n\nevent: lost\n\ndata: 2\n\n"[..]]);
    let named = |name: &str, data: &str| SseEvent { name: name.into(), data: data.into() };
    assert_eq!(events, [named("a", "1"), named("", "2")]);
}

#[test]
fn invalid_utf8_is_replaced_and_split_characters_are_not() {
    assert_eq!(read([&b"data: \xff\n\n"[..]]).0, data(&["\u{fffd}"]));
    assert_eq!(read([&b"data: \xf0\x9f"[..], &b"\x98\x80\n\n"[..]]).0, data(&["😀"]));
}

#[test]
fn too_large_an_event_is_an_error() {
    let fits = format!("data: {}\n\n", "x".repeat(EVENT_BYTES_MAX - 6));
    assert_eq!(read([fits.as_bytes()]).1, Ok(()));
    let too_large = Err(SseError::TooLarge { event_bytes_max: EVENT_BYTES_MAX });
    for text in [format!("data: ok\n\ndata: {}", "x".repeat(EVENT_BYTES_MAX)), "data: ok\n\n".to_owned() + &"data: 0123456789\n".repeat(7)]
    {
        assert_eq!(read([text.as_bytes()]), (data(&["ok"]), too_large.clone()));
    }
}

#[test]
fn a_cut_inside_an_event_is_seen() {
    for (text, inside) in [("", false), ("data: a\n\n", false), (": ping\n", false), ("data: a\n", true), ("da", true)] {
        let mut parser = SseParser::new(EVENT_BYTES_MAX);
        parser.push(text.as_bytes(), |_| {}).unwrap();
        assert_eq!(parser.is_inside_event(), inside, "{text:?}");
    }
}

#[test]
fn what_is_written_is_read() {
    let mut bytes = BytesMut::new();
    write_data(&mut bytes, &json!({"text": "a\n\nb\r"}));
    write_event(&mut bytes, "delta", &json!([1]));
    assert_eq!(&bytes[..], b"data: {\"text\":\"a\\n\\nb\\r\"}\n\nevent: delta\ndata: [1]\n\n");
    let (events, _) = read([&bytes[..]]);
    assert_eq!(events[0].data, r#"{"text":"a\n\nb\r"}"#);
    assert_eq!((events[1].name.as_str(), events[1].data.as_str()), ("delta", "[1]"));
}

fn stream() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        Just("data: hello".as_bytes().to_vec()),
        Just("data:".as_bytes().to_vec()),
        Just("data: grüße 😀".as_bytes().to_vec()),
        Just(": ping".as_bytes().to_vec()),
        Just("event: x".as_bytes().to_vec()),
        Just(Vec::new()),
        proptest::collection::vec(any::<u8>(), 0..80),
    ];
    let ending = prop_oneof![Just(&b"\n"[..]), Just(&b"\r\n"[..]), Just(&b"\r"[..])];
    proptest::collection::vec((line, ending), 0..20)
        .prop_map(|lines| lines.into_iter().flat_map(|(line, ending)| [line, ending.to_vec()].concat()).collect())
}

proptest! {
    #[test]
    fn any_chunking_gives_the_same_events(stream in stream(), cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12)) {
        let whole = read([&stream[..]]);
        prop_assert_eq!(&read(stream.chunks(1)), &whole);
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).chain([0, stream.len()]).collect();
        ends.sort_unstable();
        prop_assert_eq!(&read(ends.windows(2).map(|pair| &stream[pair[0]..pair[1]])), &whole);
    }
}
