//! A conversation as the API wants it, and the pieces of an answer. Nothing here is sent or read.

use cortex_core::openai::error::ErrorBody;
use serde_json::{Value, json};

use crate::error::{CliError, Result};
use crate::picture::Picture;

/// What was said so far, and how to ask.
#[derive(Debug)]
pub(crate) struct Conversation {
    model: String,
    temperature: Option<f32>,
    max_tokens: Option<u32>,
    system: Option<String>,
    /// Turns without the system message.
    turns: Vec<Value>,
    /// To be sent with the next question.
    pictures: Vec<Picture>,
}

impl Conversation {
    /// A conversation with `model` in which nothing was said.
    pub(crate) fn new(model: String, system: Option<String>, temperature: Option<f32>, max_tokens: Option<u32>) -> Self {
        Self { model, temperature, max_tokens, system, turns: Vec::new(), pictures: Vec::new() }
    }

    /// Who is asked.
    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    /// Sends `pictures` with the next question.
    pub(crate) fn attach(&mut self, pictures: Vec<Picture>) {
        self.pictures.extend(pictures);
    }

    /// Adds a question, with the pictures that wait for one.
    pub(crate) fn ask(&mut self, question: &str) {
        let pictures: Vec<Picture> = self.pictures.drain(..).collect();
        let content = if pictures.is_empty() {
            json!(question)
        } else {
            let pictures = pictures.iter().map(|picture| json!({"type": "image_url", "image_url": {"url": picture.data_url()}}));
            pictures.chain([json!({"type": "text", "text": question})]).collect()
        };
        self.turns.push(json!({"role": "user", "content": content}));
    }

    /// Adds what the model said.
    pub(crate) fn keep(&mut self, answer: &str) {
        self.turns.push(json!({"role": "assistant", "content": answer}));
    }

    /// Removes the question that was not answered.
    pub(crate) fn take_back(&mut self) {
        self.turns.pop();
    }

    /// Starts anew with the same system message.
    pub(crate) fn forget(&mut self) {
        self.turns.clear();
        self.pictures.clear();
    }

    /// The body of the next request.
    pub(crate) fn request(&self) -> Value {
        let system = self.system.iter().map(|text| json!({"role": "system", "content": text}));
        let messages: Vec<Value> = system.chain(self.turns.iter().cloned()).collect();
        let mut body = json!({"model": self.model, "messages": messages, "stream": true});
        if let Some(temperature) = self.temperature {
            // Through text, so that 0.7 is not sent as 0.699999988079071.
            body["temperature"] = temperature.to_string().parse::<f64>().map_or(Value::Null, Value::from);
        }
        if let Some(max_tokens) = self.max_tokens {
            body["max_tokens"] = max_tokens.into();
        }
        body
    }
}

/// What one event of a streamed answer brings.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// More of the answer.
    Text(String),
    /// Nothing to show.
    Nothing,
    /// The answer ends because it is as long as it may be.
    CutAtLimit,
    /// The end.
    Done,
}

impl Piece {
    /// Reads the data of an event. An error that the server sends in the stream is returned as one.
    pub(crate) fn parse(data: &str) -> Result<Self> {
        if data == "[DONE]" {
            return Ok(Self::Done);
        }
        if let Ok(body) = serde_json::from_str::<ErrorBody>(data) {
            return Err(CliError::new(body.error.message));
        }
        let chunk: Value =
            serde_json::from_str(data).map_err(|error| CliError::new(format!("the gateway sent an event that cannot be read: {error}")))?;
        let choice = &chunk["choices"][0];
        Ok(match (choice["delta"]["content"].as_str().unwrap_or_default(), choice["finish_reason"].as_str()) {
            ("", Some("length")) => Self::CutAtLimit,
            ("", _) => Self::Nothing,
            (text, _) => Self::Text(text.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_holds_the_whole_conversation() {
        let mut talk = Conversation::new("cortex-demo".into(), Some("Be brief.".into()), Some(0.7), Some(64));
        talk.ask("Hello!");
        talk.keep("Hi.");
        talk.attach(vec![Picture::from_bytes(b"\x89PNG\r\n\x1a\n".to_vec()).unwrap()]);
        talk.ask("What is this?");
        insta::assert_json_snapshot!(talk.request(), @r#"
        {
          "model": "cortex-demo",
          "messages": [
            {
              "role": "system",
              "content": "Be brief."
            },
            {
              "role": "user",
              "content": "Hello!"
            },
            {
              "role": "assistant",
              "content": "Hi."
            },
            {
              "role": "user",
              "content": [
                {
                  "type": "image_url",
                  "image_url": {
                    "url": "data:image/png;base64,iVBORw0KGgo="
                  }
                },
                {
                  "type": "text",
                  "text": "What is this?"
                }
              ]
            }
          ],
          "stream": true,
          "temperature": 0.7,
          "max_tokens": 64
        }
        "#);
        talk.take_back();
        talk.ask("And this?");
        assert_eq!(talk.request()["messages"][3], json!({"role": "user", "content": "And this?"}));
        talk.forget();
        assert_eq!(talk.request()["messages"], json!([{"role": "system", "content": "Be brief."}]));
    }

    #[test]
    fn events_become_pieces() {
        let chunk = |delta: Value, reason: Value| json!({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}).to_string();
        let cases = [
            (chunk(json!({"role": "assistant", "content": ""}), Value::Null), Piece::Nothing),
            (chunk(json!({"content": "Hel"}), Value::Null), Piece::Text("Hel".into())),
            (chunk(json!({}), json!("stop")), Piece::Nothing),
            (chunk(json!({}), json!("length")), Piece::CutAtLimit),
            (json!({"choices": [], "usage": {"prompt_tokens": 1}}).to_string(), Piece::Nothing),
            ("[DONE]".into(), Piece::Done),
        ];
        for (data, expected) in cases {
            assert_eq!(Piece::parse(&data), Ok(expected), "{data}");
        }
        let error = json!({"error": {"message": "the node died", "type": "server_error", "param": null, "code": null}}).to_string();
        assert_eq!(Piece::parse(&error), Err(CliError::new("the node died")));
        assert!(Piece::parse("{").is_err());
    }
}
