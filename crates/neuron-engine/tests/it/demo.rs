//! The bundled demo model by its behaviour: what it says about 60 pictures and in 25 conversations, right and as the reference does.
//!
//! `DEMO_TESTS_DIR` names a further set of the same format.

use std::fs;
use std::path::{Path, PathBuf};

use cortex_core::{ChatPrompt, FinishReason, GenerateRequest, Prompt, SamplingRequest};
use futures::future::join_all;
use neuron_engine::frontend::RopePositions;
use neuron_engine::models::qwen3_vl_vision::VisionSwitches;
use neuron_engine::{LoadOptions, LoadedModel, Switches};
use serde_json::{Map, Value, json};

use crate::engine::{Answer, answer, load_folder};
use crate::fixtures::{demo_checkpoint, read_json};

/// Above this gap between the best two logits, another rounding must not change the answer.
const MARGIN: f64 = 0.5;
const RIGHT_OF_300: usize = 292;

struct Set {
    folder: PathBuf,
}

/// One question about one picture.
struct Question {
    asked: Value,
    right: bool,
    as_reference: bool,
}

fn demo_sets() -> Vec<Set> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/demo");
    std::iter::once(own).chain(std::env::var_os("DEMO_TESTS_DIR").map(PathBuf::from)).map(|folder| Set { folder }).collect()
}

impl Set {
    fn questions(&self) -> Vec<Value> {
        let questions = read_json(&self.folder.join("tests.json")).as_array().unwrap().clone();
        assert!(!questions.is_empty());
        questions
    }

    fn picture(&self, name: &Value) -> Vec<u8> {
        fs::read(self.folder.join(name.as_str().unwrap())).unwrap()
    }

    /// Asks every `every`-th question; each alone in its conversation, all at once.
    async fn ask(&self, model: &LoadedModel, every: usize) -> Vec<Question> {
        let questions: Vec<_> = self.questions().into_iter().step_by(every).collect();
        join_all(questions.into_iter().map(|asked| self.ask_one(model, asked))).await
    }

    async fn ask_one(&self, model: &LoadedModel, asked: Value) -> Question {
        let content = json!([{ "type": "image_url", "image_url": {} }, { "type": "text", "text": asked["question"] }]);
        let chat = ChatPrompt { messages: vec![message("user", content)], add_generation_prompt: true, ..Default::default() };
        let found = answer(model, greedy(chat), vec![self.picture(&asked["image"]).into()]).await.unwrap();
        Question { right: found.text == asked["expected"], as_reference: found.text == asked["reference"], asked }
    }
}

fn message(role: &str, content: Value) -> Map<String, Value> {
    Map::from_iter([("role".into(), json!(role)), ("content".into(), content)])
}

fn greedy(chat: ChatPrompt) -> GenerateRequest {
    GenerateRequest {
        model: "cortex-demo".into(),
        request_id: "test".into(),
        prompt: Prompt::Chat(chat),
        sampling: SamplingRequest { temperature: Some(0.0), ..Default::default() },
        stop: vec![],
        max_tokens: Some(150),
        logprobs: None,
        prompt_logprobs: false,
    }
}

async fn demo(switches: Switches) -> LoadedModel {
    // All questions of a set wait at once: each prompt has up to 5 blocks.
    load_folder(demo_checkpoint(), LoadOptions { switches, ..Default::default() }).await
}

fn right(questions: &[Question]) -> usize {
    questions.iter().filter(|question| question.right).count()
}

#[tokio::test]
async fn it_sees_what_the_reference_sees() {
    let model = demo(Switches::default()).await;
    for set in demo_sets() {
        let questions = set.ask(&model, 1).await;
        for Question { asked, .. } in questions.iter().filter(|question| !question.as_reference) {
            assert!(asked["min_margin"].as_f64().unwrap() <= MARGIN, "{asked}");
        }
        let right = right(&questions);
        assert!(right * 300 >= RIGHT_OF_300 * questions.len(), "{right} of {}", questions.len());
    }
}

#[tokio::test]
async fn each_switch_makes_it_see_worse() {
    const EVERY: usize = 4;
    let trained = demo(Switches::default()).await;
    let tower = |legacy_positions, legacy_rope| Switches { vision: VisionSwitches { legacy_positions, legacy_rope }, ..Default::default() };
    let switched = [
        ("sequential_positions", tower(true, false)),
        ("no_vision_rotary", tower(false, true)),
        ("text_positions_1d", Switches { positions: RopePositions::Sequential, ..Default::default() }),
    ];
    for set in demo_sets() {
        let well = right(&set.ask(&trained, EVERY).await);
        for (name, switches) in switched {
            let questions = set.ask(&demo(switches).await, EVERY).await;
            let worse = right(&questions);
            assert!(worse * 10 < well * 9, "{name}: {worse} right instead of {well}");
            // Which answers break is the reference's too, not just how many.
            let breaks = |question: &&Question| question.asked["broken_by"].as_array().unwrap().contains(&json!(name));
            let agree = questions.iter().filter(|question| breaks(question) != question.as_reference).count();
            assert!(agree * 50 >= questions.len() * 49, "{name}: {agree} of {} break as in the reference", questions.len());
        }
    }
}

#[tokio::test]
async fn it_talks_as_the_reference_talks() {
    let model = demo(Switches::default()).await;
    for set in demo_sets() {
        let dialogs = read_json(&set.folder.join("dialogs.json"));
        for dialog in dialogs.as_array().unwrap() {
            talk(&set, &model, dialog).await;
        }
    }
}

async fn talk(set: &Set, model: &LoadedModel, dialog: &Value) {
    let mut chat = begin(dialog);
    let images: Vec<_> =
        Some(&dialog["image"]).filter(|image| !image.is_null()).map(|image| set.picture(image).into()).into_iter().collect();
    for turn in dialog["turns"].as_array().unwrap() {
        chat.messages.extend(sent(turn));
        let found = answer(model, greedy(chat.clone()), images.clone()).await.unwrap();
        assert_eq!(found.usage.prompt_tokens as u64, turn["prompt_tokens"].as_u64().unwrap(), "{turn}");
        assert_said(&found, turn);
        chat.messages.push(as_client_sends(&found));
    }
}

fn sent(turn: &Value) -> impl Iterator<Item = Map<String, Value>> + '_ {
    turn["send"].as_array().unwrap().iter().map(|sent| sent.as_object().unwrap().clone())
}

fn begin(dialog: &Value) -> ChatPrompt {
    let mut chat = ChatPrompt {
        messages: dialog["system"].as_str().map(|text| message("system", json!(text))).into_iter().collect(),
        tools: dialog["tools"].as_array().cloned(),
        add_generation_prompt: true,
        ..Default::default()
    };
    if dialog["enable_thinking"] == true {
        chat.template_kwargs.insert("enable_thinking".into(), json!(true));
    }
    chat
}

/// `turn.answer` is the model's own text: `[thought</think>]text` or calls between tags, which `turn.tool_calls` lists.
fn assert_said(found: &Answer, turn: &Value) {
    let raw = turn["answer"].as_str().unwrap();
    let (thought, said) = raw.split_once("</think>").unwrap_or(("", raw));
    let text = said.split("<tool_call>").next().unwrap();
    assert_eq!((found.reasoning.as_str(), found.text.as_str()), (thought.trim(), text.trim()), "{turn}");
    let calls: Vec<_> = found.calls.iter().map(|[_, name, arguments]| json!({"name": name, "arguments": object(arguments)})).collect();
    assert_eq!(json!(calls), turn["tool_calls"], "{turn}");
    assert_eq!(found.reason, if calls.is_empty() { FinishReason::Stop } else { FinishReason::ToolCalls }, "{turn}");
}

fn object(arguments: &str) -> Value {
    serde_json::from_str(arguments).unwrap()
}

/// The answer as OpenAI's clients give it back: calls with their arguments as text, thoughts left out.
fn as_client_sends(found: &Answer) -> Map<String, Value> {
    let mut sent = message("assistant", if found.calls.is_empty() { json!(found.text) } else { json!(null) });
    if !found.calls.is_empty() {
        let call =
            |[id, name, arguments]: &[String; 3]| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        sent.insert("tool_calls".into(), found.calls.iter().map(call).collect());
    }
    sent
}

#[tokio::test]
async fn a_stop_text_inside_a_thought_or_a_call_is_none() {
    let model = demo(Switches::default()).await;
    let mut tried = 0;
    for set in demo_sets() {
        let dialogs = read_json(&set.folder.join("dialogs.json"));
        for dialog in dialogs.as_array().unwrap().iter().filter(|dialog| dialog["image"].is_null()) {
            let turn = &dialog["turns"][0];
            let (thought, said) = turn["answer"].as_str().unwrap().split_once("</think>").unwrap_or_default();
            let hidden = if thought.is_empty() { turn["tool_calls"][0]["name"].as_str() } else { thought.split_whitespace().last() };
            let Some(stop) = hidden.filter(|word| !said.contains(word)) else { continue };
            let mut request = greedy(begin(dialog));
            let Prompt::Chat(chat) = &mut request.prompt else { unreachable!() };
            chat.messages.extend(sent(turn));
            request.stop = vec![stop.to_owned()];
            assert_said(&answer(&model, request, vec![]).await.unwrap(), turn);
            tried += 1;
        }
    }
    assert!(tried >= 3, "{tried}");
}

#[tokio::test]
async fn every_log_probability_arrives_whatever_its_token_becomes() {
    let model = demo(Switches::default()).await;
    for set in demo_sets() {
        let dialogs = read_json(&set.folder.join("dialogs.json"));
        for dialog in dialogs.as_array().unwrap().iter().filter(|dialog| dialog["image"].is_null()) {
            let turn = &dialog["turns"][0];
            let mut request = greedy(begin(dialog));
            let Prompt::Chat(chat) = &mut request.prompt else { unreachable!() };
            chat.messages.extend(sent(turn));
            request.logprobs = Some(0);
            let found = answer(&model, request, vec![]).await.unwrap();
            // The token that ends the turn is counted, but it has no text.
            assert_eq!(found.tokens().len() as u64 + 1, u64::from(found.usage.completion_tokens), "{turn}");
            assert_said(&found, turn);
        }
    }
}
