//! The whole engine on small checkpoints: whatever travels together, however a prompt is cut, the numbers are the same.

use std::path::PathBuf;
use std::time::Duration;

use cortex_core::{FinishReason, GenerateEvent, GenerateRequest, HarnessError, Prompt, SamplingRequest, TokenLogprob, Usage};
use futures::StreamExt;
use futures::future::join_all;
use neuron_engine::image::EncodedImage;
use neuron_engine::{DeviceSet, EngineLimits, LoadOptions, LoadedModel, load};

fn checkpoint(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/parity/checkpoints").join(name)
}

pub(crate) async fn loaded(name: &str, options: LoadOptions) -> LoadedModel {
    load_folder(checkpoint(name), options).await
}

pub(crate) async fn load_folder(folder: PathBuf, options: LoadOptions) -> LoadedModel {
    let devices = DeviceSet::cpu(options.tensor_parallel).unwrap();
    load(&devices, "test".into(), folder, options).await.unwrap()
}

/// A whole answer. Two are equal only if every log-probability is equal bit for bit.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) reasoning: String,
    /// Id, name and arguments.
    pub(crate) calls: Vec<[String; 3]>,
    logprobs: Vec<TokenLogprob>,
    pub(crate) reason: FinishReason,
    pub(crate) stop: Option<String>,
    pub(crate) usage: Usage,
}

impl Answer {
    pub(crate) fn tokens(&self) -> Vec<u32> {
        self.logprobs.iter().map(|token| token.chosen.id).collect()
    }

    /// The answer without what depends on earlier requests.
    pub(crate) fn without_cache(mut self) -> Self {
        self.usage.cached_tokens = 0;
        self
    }
}

pub(crate) fn request(prompt: Vec<u32>, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        model: "test".into(),
        request_id: "test".into(),
        prompt: Prompt::Tokens(prompt),
        sampling: SamplingRequest { temperature: Some(0.0), ignore_eos: true, ..Default::default() },
        stop: vec![],
        max_tokens: Some(max_tokens),
        logprobs: Some(2),
        prompt_logprobs: false,
    }
}

pub(crate) async fn answer(model: &LoadedModel, request: GenerateRequest, images: Vec<EncodedImage>) -> Result<Answer, HarnessError> {
    let mut events = model.generate(request, images).await?;
    let (mut text, mut reasoning, mut calls, mut logprobs) = (String::new(), String::new(), Vec::new(), Vec::new());
    while let Some(event) = events.next().await {
        match event? {
            GenerateEvent::Started { .. } => assert!(logprobs.is_empty(), "the start comes first"),
            GenerateEvent::Prompt { .. } => panic!("nobody asked for the prompt"),
            GenerateEvent::Text { text: more, logprobs: tokens } => {
                text += &more;
                logprobs.extend(tokens);
            }
            GenerateEvent::Reasoning { text: more, logprobs: tokens } => {
                reasoning += &more;
                logprobs.extend(tokens);
            }
            GenerateEvent::ToolCall { index, id, name } => {
                assert_eq!(index as usize, calls.len());
                calls.push([id, name, String::new()]);
            }
            GenerateEvent::ToolArguments { index, text: more } => {
                assert_eq!(index as usize + 1, calls.len());
                calls[index as usize][2] += &more;
            }
            GenerateEvent::Finish { reason, stop, usage } => return Ok(Answer { text, reasoning, calls, logprobs, reason, stop, usage }),
        }
    }
    panic!("the stream ended without an end")
}

/// Prompts of many lengths; the first token differs, so that none is another's beginning.
fn prompts() -> Vec<Vec<u32>> {
    [1, 3, 17, 31, 32, 33, 64, 90].iter().enumerate().map(|(n, &len)| (0..len).map(|i| (7 * n as u32 + 11 * i) % 600).collect()).collect()
}

/// A request and its pictures.
pub(crate) type Asked = (GenerateRequest, Vec<EncodedImage>);

pub(crate) async fn alone(model: &LoadedModel, asked: &[Asked]) -> Vec<Answer> {
    let mut answers = Vec::new();
    for (request, images) in asked {
        answers.push(answer(model, request.clone(), images.clone()).await.unwrap().without_cache());
    }
    answers
}

pub(crate) async fn together(model: &LoadedModel, asked: &[Asked]) -> Vec<Answer> {
    let answers = join_all(asked.iter().map(|(request, images)| answer(model, request.clone(), images.clone()))).await;
    answers.into_iter().map(|answer| answer.unwrap().without_cache()).collect()
}

/// A request without pictures.
async fn text(model: &LoadedModel, request: GenerateRequest) -> Result<Answer, HarnessError> {
    answer(model, request, vec![]).await
}

fn greedy() -> Vec<Asked> {
    prompts().into_iter().map(|prompt| (request(prompt, 24), vec![])).collect()
}

const DECODERS: [&str; 5] = ["qwen3-dense-tied", "qwen3-dense-untied", "qwen3-moe", "qwen3-moe-alt", "llama"];

/// `eos_token_id` of the checkpoints' generation_config.json.
const END_TOKEN: u32 = 602;

fn no_prefix_cache() -> EngineLimits {
    EngineLimits { prefix_cache: false, ..Default::default() }
}

/// Nothing is shared, nothing is planned ahead: what all else is compared with.
fn plain() -> EngineLimits {
    EngineLimits { lookahead: false, ..no_prefix_cache() }
}

async fn limited(name: &str, limits: EngineLimits) -> LoadedModel {
    loaded(name, LoadOptions { limits, ..Default::default() }).await
}

/// Requests whose draws need to know the answer so far, among others that do not.
fn some_penalised() -> Vec<Asked> {
    let mut asked = greedy();
    for (request, _) in asked.iter_mut().step_by(2) {
        request.sampling.frequency_penalty = Some(0.7);
        request.sampling.repetition_penalty = Some(1.3);
    }
    asked
}

#[tokio::test]
async fn a_batch_gives_what_each_gives_alone() {
    for name in DECODERS {
        let plain = limited(name, plain()).await;
        let expected = alone(&plain, &greedy()).await;
        assert_eq!(together(&plain, &greedy()).await, expected, "{name}");
        let ahead = limited(name, no_prefix_cache()).await;
        assert_eq!(together(&ahead, &greedy()).await, expected, "{name}, with lookahead");
    }
}

#[tokio::test]
async fn planning_ahead_changes_nothing() {
    for asked in [greedy(), some_penalised()] {
        let expected = alone(&limited("qwen3-dense-tied", plain()).await, &asked).await;
        let ahead = limited("qwen3-dense-tied", no_prefix_cache()).await;
        assert_eq!(alone(&ahead, &asked).await, expected);
        assert_eq!(together(&ahead, &asked).await, expected);
    }
    assert_ne!(
        alone(&limited("qwen3-dense-tied", plain()).await, &greedy()).await,
        alone(&limited("qwen3-dense-tied", plain()).await, &some_penalised()).await
    );
}

#[tokio::test]
async fn a_prompt_in_chunks_gives_what_it_gives_whole() {
    for name in DECODERS {
        let expected = alone(&limited(name, plain()).await, &greedy()).await;
        for lookahead in [false, true] {
            let chunked = limited(name, EngineLimits { step_tokens_max: 7, lookahead, ..plain() }).await;
            assert_eq!(together(&chunked, &greedy()).await, expected, "{name}, lookahead: {lookahead}");
        }
    }
}

#[tokio::test]
async fn a_known_beginning_is_not_computed_again_and_changes_nothing() {
    for lookahead in [false, true] {
        let model = limited("qwen3-dense-tied", EngineLimits { lookahead, ..Default::default() }).await;
        let long = request((0..200).map(|i| i * 3 % 600).collect(), 40);
        let cold = text(&model, long.clone()).await.unwrap();
        let warm = text(&model, long.clone()).await.unwrap();
        assert_eq!((cold.usage.cached_tokens, warm.usage.cached_tokens), (0, 192));
        assert_eq!(cold.clone().without_cache(), warm.without_cache());

        let mut next_turn = long;
        let Prompt::Tokens(ids) = &mut next_turn.prompt else { unreachable!() };
        ids.extend(cold.tokens());
        ids.extend([5, 6, 7]);
        let continued = text(&model, next_turn).await.unwrap();
        assert_eq!(continued.usage.cached_tokens, 224, "the answer's full blocks are found, too");
    }
}

#[tokio::test]
async fn preempted_sequences_lose_nothing() {
    let requests: Vec<_> = prompts().into_iter().map(|prompt| (request(prompt, 100), vec![])).collect();
    let expected = alone(&limited("llama", plain()).await, &requests).await;
    for lookahead in [false, true] {
        // Room for one sequence of full length: eight run together until their answers no longer fit.
        let limits = EngineLimits { lookahead, ..Default::default() };
        let cramped = loaded("llama", LoadOptions { context: Some(256), parallel: 1, limits, ..Default::default() }).await;
        assert_eq!(together(&cramped, &requests).await, expected, "lookahead: {lookahead}");
        assert!(cramped.preemptions() > 0, "the test must preempt to mean anything");
    }
}

/// Each decoder on the first device alone and split over two.
async fn two_say_what_one_says(devices: &DeviceSet, off_max: f32) {
    let on = |name, tensor_parallel| {
        let options = LoadOptions { tensor_parallel, dtype: Some("f32".into()), ..Default::default() };
        load(devices, "test".into(), checkpoint(name), options)
    };
    for name in DECODERS {
        let (one, two) = (on(name, 1).await.unwrap(), on(name, 2).await.unwrap());
        let (expected, found) = (alone(&one, &greedy()).await, together(&two, &greedy()).await);
        for (expected, found) in expected.iter().zip(&found) {
            assert_eq!((&expected.text, expected.tokens()), (&found.text, found.tokens()), "{name}");
            let pairs = expected.logprobs.iter().zip(&found.logprobs);
            let off = pairs.map(|(a, b)| (a.chosen.logprob - b.chosen.logprob).abs()).fold(0.0, f32::max);
            assert!(off < off_max, "{name}: {off}");
        }
        two.unload(Duration::ZERO).await;
    }
}

#[tokio::test]
async fn two_ranks_say_what_one_says() {
    two_say_what_one_says(&DeviceSet::cpu(2).unwrap(), 1e-4).await;
}

#[cfg(feature = "cuda")]
#[tokio::test]
async fn two_gpus_say_what_one_says() {
    let (devices, _) = DeviceSet::detect(1).unwrap();
    assert!(devices.names().len() > 1, "this test needs two GPUs: {:?}", devices.names());
    two_say_what_one_says(&devices, 1e-3).await;
}

#[tokio::test]
async fn devices_are_let_go_of_while_a_model_still_has_them() {
    let devices = DeviceSet::cpu(2).unwrap();
    let model = load(&devices, "test".into(), checkpoint("qwen3-dense-tied"), LoadOptions::default()).await.unwrap();
    assert!(text(&model, request(vec![1, 2, 3], 4)).await.is_ok());
    devices.shutdown().await;
    assert!(text(&model, request(vec![1, 2, 3], 4)).await.is_err());
    devices.shutdown().await;
}

#[tokio::test]
async fn a_seed_gives_the_same_text_in_any_company() {
    let model = loaded("qwen3-dense-tied", LoadOptions::default()).await;
    let seeded = |seed: u64| {
        let mut request = request(vec![1, 2, 3, 4], 24);
        request.sampling =
            SamplingRequest { temperature: Some(1.0), top_p: Some(0.95), seed: Some(seed), ignore_eos: true, ..Default::default() };
        (request, vec![])
    };
    let requests: Vec<_> = (0..6).map(seeded).collect();
    let expected = alone(&limited("qwen3-dense-tied", plain()).await, &requests).await;
    assert_eq!(together(&model, &requests).await, expected);
    let reversed: Vec<_> = requests.iter().rev().cloned().collect();
    assert!(together(&model, &reversed).await.iter().eq(expected.iter().rev()));
    assert_ne!(expected[0].text, expected[1].text, "different seeds differ");
    let mut unseeded = seeded(0).0;
    unseeded.sampling.seed = None;
    let (a, b) = (text(&model, unseeded.clone()).await.unwrap(), text(&model, unseeded).await.unwrap());
    assert_ne!(a.text, b.text, "without a seed each answer is drawn anew");
}

#[tokio::test]
async fn a_dropped_client_frees_its_blocks() {
    let model = loaded("qwen3-dense-tied", LoadOptions { limits: no_prefix_cache(), ..Default::default() }).await;
    let mut events = model.generate(request(vec![1, 2, 3], 2000), vec![]).await.unwrap();
    events.next().await.unwrap().unwrap();
    until(|| model.health().kv_blocks_used > 0).await;
    drop(events);
    until(|| model.health().running == 0 && model.health().kv_blocks_used == 0).await;
}

#[tokio::test]
async fn what_is_drawn_past_the_end_is_dropped() {
    let model = loaded("qwen3-dense-tied", LoadOptions::default()).await;
    let mut ending = request(vec![1, 2, 3], 50);
    ending.sampling.ignore_eos = false;
    ending.sampling.logit_bias = vec![(END_TOKEN, 1000.0)];
    let ended = text(&model, ending).await.unwrap();
    assert_eq!((ended.reason, ended.text.as_str()), (FinishReason::Stop, ""));
    // Steps run in order: once this is through, so is whatever was under way behind the end.
    let whole = text(&model, request(vec![4, 5, 6], 9)).await.unwrap();
    assert_eq!((ended.usage.completion_tokens, whole.usage.completion_tokens), (1, 9));
    until(|| model.health().running == 0 && model.health().kv_blocks_used == 0).await;
    assert_eq!(model.health().generated_tokens_total, 10);
}

#[tokio::test]
async fn a_failed_step_fails_its_request_and_not_the_next() {
    let model = loaded("qwen3-dense-tied", LoadOptions::default()).await;
    let expected = text(&model, request(vec![4, 5, 6], 9)).await.unwrap();
    let mut impossible = request(vec![1, 2, 3], 9);
    impossible.sampling.logit_bias = (0..640).map(|id| (id, f32::NEG_INFINITY)).collect();
    let error = text(&model, impossible).await.unwrap_err();
    assert!(error.to_string().contains("no token can follow"), "{error}");
    assert_eq!(text(&model, request(vec![4, 5, 6], 9)).await.unwrap().without_cache(), expected);
    until(|| model.health().kv_blocks_used == 0).await;
    assert!(model.health().servable);
}

#[tokio::test]
async fn a_stop_text_ends_the_answer_before_it() {
    let model = loaded("qwen3-dense-tied", LoadOptions::default()).await;
    let whole = text(&model, request(vec![9, 8, 7], 30)).await.unwrap();
    let middle: String = whole.text.chars().skip(whole.text.chars().count() / 2).take(3).collect();
    let cut = text(&model, GenerateRequest { stop: vec![middle.clone()], ..request(vec![9, 8, 7], 30) }).await.unwrap();
    assert_eq!((cut.reason, cut.stop.as_ref()), (FinishReason::Stop, Some(&middle)));
    assert_eq!(cut.text, whole.text[..whole.text.find(&middle).unwrap()]);
    assert!(cut.usage.completion_tokens < whole.usage.completion_tokens);
    assert_eq!((whole.reason, whole.stop), (FinishReason::Length, None));
    assert_eq!(whole.usage, Usage { prompt_tokens: 3, completion_tokens: 30, ..Usage::default() });
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_in_words() {
    let limits = EngineLimits { running_max: 1, waiting_max: 1, ..Default::default() };
    let model = loaded("qwen3-dense-tied", LoadOptions { context: Some(128), limits, ..Default::default() }).await;
    let refused = |request: GenerateRequest| async { text(&model, request).await.unwrap_err() };
    assert_eq!(refused(request(vec![1; 128], 1)).await, HarnessError::ContextLength { prompt_tokens: 128, context: 128 });
    assert!(refused(request(vec![], 1)).await.to_string().contains("empty"));
    assert!(refused(request(vec![640], 1)).await.to_string().contains("vocabulary"));
    let mut biased = request(vec![1], 1);
    biased.sampling.logit_bias = vec![(9999, 1.0)];
    assert!(matches!(refused(biased).await, HarnessError::InvalidRequest { param: Some(param), .. } if param == "logit_bias"));
    let pictures = model.generate(request(vec![1], 1), vec![vec![0].into()]).await.err().unwrap();
    assert!(pictures.to_string().contains("does not see pictures"), "{pictures}");
    assert!(model.embed(vec![Prompt::Text("a".into())]).await.unwrap_err().to_string().contains("embeddings"));
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let limits = EngineLimits { running_max: 1, waiting_max: 1, ..Default::default() };
    let model = loaded("qwen3-dense-tied", LoadOptions { limits, ..Default::default() }).await;
    let storm = join_all((0..50).map(|i| model.generate(request(vec![i; 8], 200), vec![]))).await;
    let refused = storm.iter().filter(|outcome| matches!(outcome, Err(HarnessError::Overloaded { retry_after_s: 1.., .. }))).count();
    assert!(refused > 0, "one runs, one waits, the inbox holds one; the rest must be told");
    assert!(storm.iter().all(|outcome| matches!(outcome, Ok(_) | Err(HarnessError::Overloaded { .. }))));
}

#[tokio::test]
async fn an_unloaded_model_is_gone_and_its_streams_are_told() {
    let model = loaded("qwen3-dense-tied", LoadOptions::default()).await;
    let mut events = model.generate(request(vec![1, 2, 3], 2000), vec![]).await.unwrap();
    events.next().await.unwrap().unwrap();
    model.unload(Duration::ZERO).await;
    let rest: Vec<_> = events.collect().await;
    assert_eq!(rest.last().unwrap(), &Err(HarnessError::ShuttingDown));
    assert_eq!(text(&model, request(vec![1], 1)).await.unwrap_err(), HarnessError::ShuttingDown);
}

#[tokio::test]
async fn sentences_become_vectors() {
    let model = loaded("bert", LoadOptions::default()).await;
    let texts = ["A red square", "The water is slow in winter."];
    let found = model.embed(texts.map(|text| Prompt::Text(text.into())).to_vec()).await.unwrap();
    assert_eq!((found.vectors.len(), found.prompt_tokens), (2, 6 + 19));
    for vector in &found.vectors {
        let norm: f32 = vector.iter().map(|x| x * x).sum();
        assert!((norm - 1.0).abs() < 1e-5);
    }
    let chat = text(&model, request(vec![1], 1)).await.unwrap_err();
    assert!(chat.to_string().contains("/v1/embeddings"), "{chat}");
}

#[tokio::test]
async fn a_folder_that_is_no_checkpoint_is_refused_in_words() {
    let devices = DeviceSet::cpu(1).unwrap();
    let refused = |name: &'static str, options: LoadOptions| {
        let devices = devices.clone();
        async move { load(&devices, name.into(), checkpoint(name), options).await.err().unwrap().to_string() }
    };
    assert!(refused("nothing-here", LoadOptions::default()).await.contains("config.json"));
    let too_long = LoadOptions { context: Some(1 << 20), ..Default::default() };
    assert!(refused("llama", too_long).await.contains("max_position_embeddings"));
    let no_room = LoadOptions { kv_bytes_max: Some(1000), ..Default::default() };
    assert!(refused("llama", no_room).await.contains("smaller `context`"));
    let devices_missing = LoadOptions { tensor_parallel: 3, ..Default::default() };
    assert!(refused("llama", devices_missing).await.contains("cpu-0"));
}

/// Waits for another thread to get there; the limit only ends a broken test.
async fn until(condition: impl Fn() -> bool) {
    let reached = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reached).await.expect("the condition is reached");
}

/// A checkpoint whose vocabulary has the tokens of a model that fills in.
fn that_fills_in() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(checkpoint("qwen3-dense-tied")).unwrap() {
        let path = file.unwrap().path();
        let to = folder.path().join(path.file_name().unwrap());
        if path.ends_with("tokenizer.json") {
            let names = [("vision_start", "fim_prefix"), ("vision_end", "fim_suffix"), ("vision_pad", "fim_middle")];
            let text = names.iter().fold(std::fs::read_to_string(path).unwrap(), |text, (old, new)| text.replace(old, new));
            std::fs::write(to, text).unwrap();
        } else {
            std::fs::copy(path, to).unwrap();
        }
    }
    folder
}

#[tokio::test]
async fn a_gap_between_two_texts_is_asked_for_in_the_models_own_tokens() {
    let folder = that_fills_in();
    let model = load_folder(folder.path().into(), LoadOptions::default()).await;
    let gap = Prompt::Infill { prefix: "fn one() {".into(), suffix: "}".into() };
    let ids = model.tokenize(gap.clone(), vec![]).await.unwrap();
    assert_eq!(model.detokenize(&ids).unwrap(), "<|fim_prefix|>fn one() {<|fim_suffix|>}<|fim_middle|>");
    let written = Prompt::Text("<|fim_prefix|>fn one() {<|fim_suffix|>}<|fim_middle|>".into());
    assert_eq!(model.tokenize(written.clone(), vec![]).await.unwrap(), ids);
    let asked = |prompt| GenerateRequest { prompt, ..request(vec![], 8) };
    assert_eq!(text(&model, asked(gap.clone())).await.unwrap().logprobs.len(), 8);
    let other = loaded("qwen3-dense-tied", LoadOptions::default()).await;
    let refused = text(&other, asked(gap)).await.unwrap_err();
    assert!(
        matches!(&refused, HarnessError::InvalidRequest { message, param: Some(param) }
        if param == "suffix" && message.contains("`<|fim_prefix|>`")),
        "{refused}"
    );
}
