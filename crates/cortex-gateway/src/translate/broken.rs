//! JSON that is nearly right: the worst that clients and nodes send.

use proptest::prelude::*;
use serde_json::{Value, json};

/// Which value is replaced, and by what.
pub(super) type Break = (prop::sample::Index, Value);

/// Values of every kind, some of them absurd.
pub(super) fn a_break() -> impl Strategy<Value = Break> {
    let deep = (0..60).fold(json!(1), |inner, _| json!([inner]));
    let values = vec![
        Value::Null,
        json!(true),
        json!(-1),
        json!(1e300),
        json!(u64::MAX),
        json!(""),
        json!("\u{0}\r\n\r\ndata: [DONE]\n\n"),
        json!("x".repeat(5_000)),
        json!([]),
        json!({}),
        json!([null, {}, [], ""]),
        json!({ "type": "text", "role": "tool", "text": null, "content": [{}] }),
        deep,
    ];
    (any::<prop::sample::Index>(), prop::sample::select(values))
}

/// `text` with the values that `breaks` name replaced.
pub(super) fn broken(text: &str, breaks: &[Break]) -> String {
    let mut whole: Value = serde_json::from_str(text).expect("what is to be broken is whole");
    for (index, with) in breaks {
        let mut left = index.index(count(&whole));
        replace(&mut whole, &mut left, with);
    }
    whole.to_string()
}

fn inner(value: &mut Value) -> Box<dyn Iterator<Item = &mut Value> + '_> {
    match value {
        Value::Array(values) => Box::new(values.iter_mut()),
        Value::Object(fields) => Box::new(fields.values_mut()),
        _ => Box::new(std::iter::empty()),
    }
}

fn count(value: &Value) -> usize {
    let inside: usize = match value {
        Value::Array(values) => values.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    };
    1 + inside
}

/// Replaces the value before which `left` others stand; true once that is done.
fn replace(value: &mut Value, left: &mut usize, with: &Value) -> bool {
    if *left == 0 {
        *value = with.clone();
        return true;
    }
    *left -= 1;
    inner(value).any(|inside| replace(inside, left, with))
}

/// The events of `text`, each with its JSON broken the same way, and then bytes that are no events at all.
pub(super) fn broken_stream(text: &str, breaks: &[Break], garbage: &[u8]) -> Vec<u8> {
    let line = |line: &str| match line.strip_prefix("data: ").filter(|data| serde_json::from_str::<Value>(data).is_ok()) {
        Some(data) => format!("data: {}", broken(data, breaks)),
        None => line.to_owned(),
    };
    let mut bytes = text.lines().map(line).collect::<Vec<_>>().join("\n").into_bytes();
    let at = garbage.len() % (bytes.len() + 1);
    bytes.splice(at..at, garbage.iter().copied());
    bytes
}
