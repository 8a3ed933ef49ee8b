//! What clients that cannot run here send, by their source or documentation, and what the node makes of it (`testdata/clients.json`).

use cortex_core::Prompt;
use neuron_api::mock::MockModel;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::rig::Rig;

#[derive(Deserialize)]
struct Case {
    client: String,
    path: String,
    sent: Value,
    /// What the chat template reads; absent: what was sent.
    messages: Option<Value>,
    tools: Option<Value>,
}

#[tokio::test]
async fn what_other_clients_send_is_answered() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../../testdata/clients.json")).unwrap();
    for Case { client, path, sent, messages, tools } in cases {
        let rig = Rig::start([vec![MockModel::loaded("m").saying(["the ", "heron"])]]).await;
        let reply = rig.client().post(&path, &sent).await;
        assert_eq!(reply.status, 200, "{client}: {}", reply.text());
        assert_eq!(said(&reply.text(), sent["stream"] == true), "the heron", "{client}");
        let Prompt::Chat(chat) = rig.mock(0).requests().remove(0).prompt else { panic!("{client} asks for no chat") };
        assert_eq!(json!(chat.messages), messages.unwrap_or_else(|| sent["messages"].clone()), "{client}");
        assert_eq!(json!(chat.tools), tools.unwrap_or_else(|| sent["tools"].clone()), "{client}");
    }
}

/// The text of an answer; of a stream that ends as it should.
fn said(answer: &str, streamed: bool) -> String {
    if !streamed {
        let answer: Value = serde_json::from_str(answer).unwrap();
        return answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    }
    let chunks = answer.strip_suffix("data: [DONE]\n\n").unwrap_or_else(|| panic!("no end: {answer}"));
    let chunk = |data: &str| serde_json::from_str::<Value>(data.strip_prefix("data: ").unwrap()).unwrap();
    let texts = chunks.split_terminator("\n\n").map(chunk);
    texts.filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
}
