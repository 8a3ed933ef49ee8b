//! JSON as Python writes it, with a space after each comma and colon. Models learned to write their calls so: a call that comes back
//! in a conversation has the same tokens as when it was generated, and is found in the prefix cache.

use std::io::{Result, Write};

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> Result<()> {
        writer.write_all(b": ")
    }
}

pub(super) fn text(value: &Value) -> String {
    let mut bytes = Vec::new();
    match value.serialize(&mut Serializer::with_formatter(&mut bytes, Spaced)) {
        Ok(()) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_like_pythons() {
        let value: Value = serde_json::from_str(r#"{"b":[1,2.5,{}],"a":{"é":"x, y: z\n"},"c":null}"#).unwrap();
        assert_eq!(text(&value), r#"{"b": [1, 2.5, {}], "a": {"é": "x, y: z\n"}, "c": null}"#);
    }
}
