//! How probable a prompt was: the numbers of the reference, and those of the same tokens as an answer.

use std::path::PathBuf;

use cortex_core::{FinishReason, GenerateEvent, GenerateRequest, HarnessError, Prompt, TokenLogprob, Usage};
use futures::StreamExt;
use futures::future::join_all;
use neuron_engine::{EngineLimits, LoadOptions, LoadedModel};

use crate::engine::{load_folder, loaded, request};
use crate::fixtures;

/// What is told of a prompt, and of the answer behind it.
#[derive(Debug, PartialEq)]
struct Told {
    first: String,
    rest: Vec<TokenLogprob>,
    answer: Vec<TokenLogprob>,
    reason: FinishReason,
    usage: Usage,
}

const TEXT_MODELS: [&str; 5] = ["qwen3-dense-tied", "qwen3-dense-untied", "qwen3-moe", "qwen3-moe-alt", "llama"];

fn scored(prompt: &[u32], max_tokens: u32) -> GenerateRequest {
    GenerateRequest { prompt_logprobs: true, ..request(prompt.to_vec(), max_tokens) }
}

async fn ask(model: &LoadedModel, request: GenerateRequest) -> Result<Told, HarnessError> {
    let mut events = model.generate(request, vec![]).await?;
    let (mut prompt, mut answer) = (None, Vec::new());
    while let Some(event) = events.next().await {
        match event? {
            GenerateEvent::Started { .. } => assert_eq!(prompt, None),
            GenerateEvent::Prompt { first, rest } => {
                assert_eq!((prompt.replace((first, rest)), &answer), (None, &vec![]), "the prompt is told once, before the answer");
            }
            GenerateEvent::Text { logprobs, .. } => answer.extend(logprobs),
            GenerateEvent::Finish { reason, usage, .. } => {
                let (first, rest) = prompt.expect("the prompt was asked for");
                return Ok(Told { first, rest, answer, reason, usage });
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("the stream ended without an end")
}

fn ids(tokens: &[TokenLogprob]) -> Vec<u32> {
    tokens.iter().map(|token| token.chosen.id).collect()
}

/// Texts longer than a step may score, and shorter; none is another's beginning.
fn prompts() -> Vec<Vec<u32>> {
    [1, 2, 33, 128, 129, 300].iter().enumerate().map(|(n, &len)| (0..len).map(|i| (5 * n as u32 + 13 * i) % 600).collect()).collect()
}

#[tokio::test]
async fn a_prompt_is_as_probable_as_the_reference_says() {
    compare(async |folder| load_folder(folder, LoadOptions::default()).await, 2e-4).await;
}

#[cfg(feature = "cuda")]
#[tokio::test]
async fn a_prompt_is_as_probable_on_a_gpu() {
    use neuron_engine::DeviceSet;

    let devices = DeviceSet::detect(1).unwrap().0;
    assert!(devices.are_gpus(), "this test needs a GPU");
    let options = LoadOptions { dtype: Some("f32".into()), ..LoadOptions::default() };
    compare(async |folder| neuron_engine::load(&devices, "test".into(), folder, options.clone()).await.unwrap(), 2e-3).await;
}

/// All prompts whose every row the reference tells, each log-probability within `off_max` nats.
async fn compare(load: impl AsyncFn(PathBuf) -> LoadedModel, off_max: f64) {
    let mut compared = 0;
    for set in fixtures::sets() {
        for name in TEXT_MODELS.into_iter().filter(|name| set.checkpoints().iter().any(|known| known == name)) {
            for (case, _) in set.cases(name).into_iter().filter(|(_, case)| case["all_rows"] == true) {
                let tensors = set.tensors(&format!("{name}/{case}"));
                let prompt: Vec<u32> = tensors["input_ids"].to_vec1::<i64>().unwrap().into_iter().map(|id| id as u32).collect();
                let logits = tensors["logits"].to_vec2::<f32>().unwrap();
                let model = load(set.checkpoint(name)).await;
                let told = ask(&model, scored(&prompt, 0)).await.unwrap();
                assert_eq!(ids(&told.rest), prompt[1..], "{name}, {case}");
                for (token, row) in told.rest.iter().zip(&logits) {
                    let expected = ln_softmax(row);
                    let best = (0..expected.len()).max_by(|&a, &b| expected[a].total_cmp(&expected[b])).unwrap();
                    for choice in [&token.chosen, &token.top[0]] {
                        let off = (f64::from(choice.logprob) - expected[choice.id as usize]).abs();
                        assert!(off < off_max, "{name}, {case}: {choice:?}, off by {off}");
                    }
                    assert!(expected[best] - expected[token.top[0].id as usize] < off_max, "{name}, {case}: the best is {best}");
                }
                compared += 1;
            }
        }
    }
    assert!(compared > 4, "only {compared} prompts were compared");
}

fn ln_softmax(row: &[f32]) -> Vec<f64> {
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = row.iter().map(|&x| (f64::from(x) - max).exp()).sum();
    row.iter().map(|&x| f64::from(x) - max - sum.ln()).collect()
}

#[tokio::test]
async fn the_tokens_of_an_answer_are_as_probable_in_a_prompt() {
    for name in ["qwen3-dense-tied", "qwen3-moe", "llama"] {
        let model = loaded(name, LoadOptions::default()).await;
        for prompt in prompts() {
            let answered = ask(&model, scored(&prompt, 40)).await.unwrap();
            let whole: Vec<u32> = prompt.iter().copied().chain(ids(&answered.answer)).collect();
            let told = ask(&model, scored(&whole, 0)).await.unwrap();
            assert_eq!((told.rest.len(), &told.first), (whole.len() - 1, &answered.first));
            let expected: Vec<_> = answered.rest.into_iter().chain(answered.answer).collect();
            assert_eq!(told.rest, expected, "{name}, {} tokens", prompt.len());
            assert_eq!((told.answer, told.reason), (vec![], FinishReason::Length));
            let prompt_tokens = whole.len() as u32;
            assert_eq!(told.usage, Usage { prompt_tokens, ..Usage::default() }, "nothing came out of the cache, though it was there");
        }
    }
}

#[tokio::test]
async fn neither_chunks_nor_company_nor_preemption_changes_a_score() {
    let asked = || prompts().into_iter().map(|prompt| scored(&prompt, 60));
    let plain = EngineLimits { lookahead: false, prefix_cache: false, ..Default::default() };
    let model = loaded("llama", LoadOptions { limits: plain, ..Default::default() }).await;
    let mut expected = Vec::new();
    for request in asked() {
        expected.push(ask(&model, request).await.unwrap());
    }
    for (step_tokens_max, parallel) in [(512, 4), (7, 4), (40, 1)] {
        let limits = EngineLimits { step_tokens_max, ..Default::default() };
        let model = loaded("llama", LoadOptions { context: Some(384), parallel, limits, ..Default::default() }).await;
        for round in 0..2 {
            let told = join_all(asked().map(|request| ask(&model, request))).await;
            let told: Vec<Told> = told.into_iter().map(Result::unwrap).collect();
            assert_eq!(told, expected, "{step_tokens_max} tokens in a step, round {round}");
        }
    }
}

#[tokio::test]
async fn a_prompt_that_fills_the_context_can_be_scored_but_not_answered() {
    let model = loaded("qwen3-dense-tied", LoadOptions { context: Some(128), ..Default::default() }).await;
    let prompt: Vec<u32> = (0..128).collect();
    assert_eq!(ask(&model, scored(&prompt, 0)).await.unwrap().rest.len(), 127);
    let too_long = |tokens| Err(HarnessError::ContextLength { prompt_tokens: tokens, context: 128 });
    assert_eq!(ask(&model, scored(&prompt, 1)).await, too_long(128));
    assert_eq!(ask(&model, scored(&[1; 129], 0)).await, too_long(129));
    let text = GenerateRequest { prompt: Prompt::Text("line or".into()), ..scored(&[], 0) };
    let told = ask(&model, text).await.unwrap();
    let said: String = told.rest.iter().map(|token| token.chosen.text.as_str()).collect();
    assert_eq!(told.first + &said, "line or");
}
