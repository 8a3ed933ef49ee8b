//! Answers held to a form: JSON of a schema, and calls that must come.

use cortex_core::harness::{AnswerFormat, ToolChoice};
use cortex_core::{ChatPrompt, FinishReason, GenerateRequest, HarnessError, Prompt, SamplingRequest};
use futures::future::join_all;
use neuron_engine::{EngineLimits, LoadOptions, LoadedModel};
use serde_json::{Map, Value, json};

use crate::engine::{Answer, answer, load_folder};
use crate::fixtures::{demo_checkpoint, read_json};

async fn demo() -> LoadedModel {
    load_folder(demo_checkpoint(), LoadOptions::default()).await
}

fn asked(question: &str, chat: ChatPrompt, seed: u64) -> GenerateRequest {
    let message = Map::from_iter([("role".into(), json!("user")), ("content".into(), json!(question))]);
    GenerateRequest {
        model: "cortex-demo".into(),
        request_id: "test".into(),
        prompt: Prompt::Chat(ChatPrompt { messages: vec![message], add_generation_prompt: true, ..chat }),
        sampling: SamplingRequest { temperature: Some(1.0), seed: Some(seed), ..Default::default() },
        stop: vec![],
        max_tokens: Some(300),
        logprobs: None,
        prompt_logprobs: false,
    }
}

fn schemas() -> Map<String, Value> {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/schemas.json");
    read_json(&file).as_object().unwrap().clone()
}

#[tokio::test]
async fn whatever_is_drawn_is_json_of_the_schema() {
    const SAMPLES: u64 = 3;
    let model = demo().await;
    let schemas = schemas();
    let cases: Vec<_> = schemas.iter().flat_map(|case| (0..SAMPLES).map(move |seed| (case, seed))).collect();
    let answers = cases.iter().map(|((_, schema), seed)| {
        let chat = ChatPrompt { format: AnswerFormat::JsonSchema((*schema).clone()), ..Default::default() };
        answer(&model, asked("Describe yourself in JSON.", chat, *seed), vec![])
    });
    for (((name, schema), seed), found) in cases.iter().zip(join_all(answers).await) {
        let found = found.unwrap();
        assert_eq!(found.reason, FinishReason::Stop, "{name}, seed {seed}: {}", found.text);
        let value: Value = serde_json::from_str(&found.text).unwrap_or_else(|error| panic!("{name}, seed {seed}: {error}: {}", found.text));
        assert!(allows(schema, schema, &value), "{name}, seed {seed}: {value}");
    }
}

/// Whether `schema`, a part of `whole`, allows `value`: a plain reading of the words that the schemas of these tests use, save `pattern`
/// and `format`.
fn allows(whole: &Value, schema: &Value, value: &Value) -> bool {
    let Some(words) = schema.as_object() else { return schema == &json!(true) };
    words.iter().all(|(word, rule)| match word.as_str() {
        "type" => rule.as_array().map_or_else(|| is_of_type(rule, value), |types| types.iter().any(|kind| is_of_type(kind, value))),
        "enum" => rule.as_array().unwrap().contains(value),
        "const" => rule == value,
        "anyOf" => rule.as_array().unwrap().iter().any(|option| allows(whole, option, value)),
        "$ref" => allows(whole, whole.pointer(rule.as_str().unwrap().trim_start_matches('#')).unwrap(), value),
        "minimum" => value.as_f64().is_none_or(|x| x >= rule.as_f64().unwrap()),
        "maximum" => value.as_f64().is_none_or(|x| x <= rule.as_f64().unwrap()),
        "minLength" => value.as_str().is_none_or(|text| text.chars().count() as u64 >= rule.as_u64().unwrap()),
        "maxLength" => value.as_str().is_none_or(|text| text.chars().count() as u64 <= rule.as_u64().unwrap()),
        "minItems" => value.as_array().is_none_or(|items| items.len() as u64 >= rule.as_u64().unwrap()),
        "maxItems" => value.as_array().is_none_or(|items| items.len() as u64 <= rule.as_u64().unwrap()),
        "prefixItems" => value.as_array().into_iter().flatten().zip(rule.as_array().unwrap()).all(|(item, rule)| allows(whole, rule, item)),
        "items" => {
            let before = schema["prefixItems"].as_array().map_or(0, Vec::len);
            value.as_array().into_iter().flatten().skip(before).all(|item| allows(whole, rule, item))
        }
        "required" => {
            value.as_object().is_none_or(|object| rule.as_array().unwrap().iter().all(|name| object.contains_key(name.as_str().unwrap())))
        }
        "properties" => {
            value.as_object().into_iter().flatten().all(|(name, value)| rule.get(name).is_none_or(|rule| allows(whole, rule, value)))
        }
        "additionalProperties" => value.as_object().is_none_or(|object| object.keys().all(|name| schema["properties"].get(name).is_some())),
        "pattern" | "format" | "$defs" => true,
        other => panic!("the reading of `{other}` is missing"),
    })
}

fn is_of_type(kind: &Value, value: &Value) -> bool {
    match kind.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{other} is no type"),
    }
}

/// A token of such an answer is known before the next is planned, whatever the engine does ahead for the free answers beside it.
#[tokio::test]
async fn planning_ahead_changes_no_held_answer() {
    let schema = schemas()["nested object"].clone();
    let mut found = Vec::new();
    for lookahead in [false, true] {
        let limits = EngineLimits { lookahead, prefix_cache: false, ..Default::default() };
        let model = load_folder(demo_checkpoint(), LoadOptions { limits, ..Default::default() }).await;
        let answers = (0..6).map(|seed| {
            let format = if seed % 2 == 0 { AnswerFormat::JsonSchema(schema.clone()) } else { AnswerFormat::Text };
            let request = asked("Describe yourself.", ChatPrompt { format, ..Default::default() }, seed);
            answer(&model, request, vec![])
        });
        found.push(join_all(answers).await.into_iter().map(Result::unwrap).collect::<Vec<_>>());
    }
    assert_eq!(found[0], found[1]);
    assert!(
        found[1]
            .iter()
            .step_by(2)
            .all(|held| serde_json::from_str::<Value>(&held.text).is_ok_and(|value| allows(&schema, &schema, &value)))
    );
}

#[tokio::test]
async fn a_thought_may_come_before_the_form() {
    let model = demo().await;
    let mut chat =
        ChatPrompt { format: AnswerFormat::JsonSchema(json!({ "type": "integer", "minimum": 0, "maximum": 99 })), ..Default::default() };
    chat.template_kwargs.insert("enable_thinking".into(), json!(true));
    let mut request = asked("What is 8 + 5?", chat, 0);
    request.sampling.temperature = Some(0.0);
    let found = answer(&model, request, vec![]).await.unwrap();
    assert!(!found.reasoning.is_empty());
    assert!(found.text.parse::<u8>().is_ok_and(|number| number < 100), "{}", found.text);
}

fn tools() -> Vec<Value> {
    let tool = |name: &str, argument: &str, strict: bool| {
        let parameters = json!({"type": "object", "properties": {argument: {"type": "string", "maxLength": 10}}, "required": [argument], "additionalProperties": false});
        json!({"type": "function", "function": {"name": name, "description": "", "parameters": parameters, "strict": strict}})
    };
    vec![tool("get_weather", "city", true), tool("get_time", "place", false)]
}

async fn called(model: &LoadedModel, question: &str, choice: ToolChoice, seed: u64) -> Answer {
    let chat = ChatPrompt { tools: Some(tools()), tool_choice: choice, one_call_at_most: true, ..Default::default() };
    answer(model, asked(question, chat, seed), vec![]).await.unwrap()
}

#[tokio::test]
async fn a_call_comes_where_one_must_and_of_the_function_that_was_named() {
    let model = demo().await;
    for seed in 0..4 {
        for (choice, allowed) in [
            (ToolChoice::Required(vec![]), &["get_weather", "get_time"][..]),
            (ToolChoice::Required(vec!["get_time".into()]), &["get_time"]),
        ] {
            let found = called(&model, "Hello!", choice, seed).await;
            assert_eq!((found.reason, found.text.as_str()), (FinishReason::ToolCalls, ""), "seed {seed}");
            let [[_, name, arguments]] = &found.calls[..] else { panic!("{:?}", found.calls) };
            assert!(allowed.contains(&name.as_str()), "{name}");
            let tool = tools().into_iter().find(|tool| tool["function"]["name"] == **name).unwrap();
            let schema = &tool["function"]["parameters"];
            assert!(allows(schema, schema, &serde_json::from_str(arguments).unwrap()), "{arguments}");
        }
    }
}

#[tokio::test]
async fn a_strict_tool_holds_its_calls_and_nothing_else() {
    let model = demo().await;
    let free = called(&model, "Hello!", ToolChoice::Auto, 0).await;
    assert!(free.calls.is_empty() && !free.text.is_empty());
    for seed in 0..4 {
        let found = called(&model, "What is the weather in Paris?", ToolChoice::Auto, seed).await;
        for [_, name, arguments] in &found.calls {
            let schema = &tools()[0]["function"]["parameters"];
            assert!(name != "get_weather" || allows(schema, schema, &serde_json::from_str(arguments).unwrap()), "{arguments}");
        }
    }
}

#[tokio::test]
async fn a_form_that_cannot_be_is_refused_before_anything_runs() {
    let model = demo().await;
    for schema in
        [json!({ "type": "string", "pattern": "(" }), json!({ "$ref": "https://example.com/schema" }), json!({ "type": "strange" })]
    {
        let chat = ChatPrompt { format: AnswerFormat::JsonSchema(schema.clone()), ..Default::default() };
        let refused = answer(&model, asked("Hello!", chat, 0), vec![]).await.unwrap_err();
        assert!(
            matches!(&refused, HarnessError::InvalidRequest { param: Some(param), .. } if param == "response_format"),
            "{schema}: {refused}"
        );
    }
}
