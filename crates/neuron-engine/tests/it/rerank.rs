//! Cross-encoders, held against scores computed plainly: the BERT of the fixtures with a head (`testdata/rerank/make_bert.py`), and a random
//! XLM-RoBERTa (`make_xlm_roberta.py`).

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use cortex_core::{Capability, HarnessError, Prompt};
use neuron_engine::models::registry::load_config;
use neuron_engine::{LoadOptions, LoadedModel};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::checkpoints::Copied;
use crate::engine::load_folder;
use crate::fixtures::read_json;

const HIDDEN: usize = 48;

fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(path)
}

/// The head of `make_bert.py`.
fn head() -> [(&'static str, Tensor); 4] {
    let numbers = |len: usize, number: &dyn Fn(f64) -> f64| (0..len).map(|i| number(i as f64) as f32).collect::<Vec<_>>();
    let tensor = |numbers: Vec<f32>, shape: &[usize]| Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap();
    [
        ("bert.pooler.dense.weight", tensor(numbers(HIDDEN * HIDDEN, &|i| 0.3 * (0.37 * i + 0.1).sin()), &[HIDDEN, HIDDEN])),
        ("bert.pooler.dense.bias", tensor(numbers(HIDDEN, &|i| 0.05 * i.cos()), &[HIDDEN])),
        ("classifier.weight", tensor(numbers(HIDDEN, &|i| 0.5 * (0.7 * i).cos()), &[1, HIDDEN])),
        ("classifier.bias", tensor(vec![0.1], &[1])),
    ]
}

fn checkpoint(change: impl Fn(&mut Value)) -> TempDir {
    let bert = testdata("parity/checkpoints/bert");
    let mut copied = Copied::of(&bert);
    copied.tensors = copied.tensors.into_iter().map(|(name, tensor)| (format!("bert.{name}"), tensor)).collect();
    copied.tensors.extend(head().map(|(name, tensor)| (name.to_owned(), tensor)));
    copied.config["architectures"] = json!(["BertForSequenceClassification"]);
    copied.config["id2label"] = json!({ "0": "LABEL_0" });
    change(&mut copied.config);
    let folder = copied.write();
    copy_tokenizer(&bert, folder.path());
    folder
}

fn copy_tokenizer(from: &Path, to: &Path) {
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
}

async fn reranker() -> LoadedModel {
    load_folder(checkpoint(|_| ()).path().into(), LoadOptions::default()).await
}

/// A model that ranks, and its reference.
async fn rerankers() -> [(LoadedModel, Value); 2] {
    let xlm_roberta = load_folder(testdata("rerank/xlm-roberta"), LoadOptions::default()).await;
    [(reranker().await, reference("bert")), (xlm_roberta, reference("xlm-roberta"))]
}

fn reference(name: &str) -> Value {
    read_json(&testdata(&format!("rerank/{name}.json")))
}

fn texts(reference: &Value) -> Vec<String> {
    serde_json::from_value(reference["documents"].clone()).unwrap()
}

#[tokio::test]
async fn pairs_have_the_scores_that_plain_arithmetic_gives_them() {
    for (model, reference) in rerankers().await {
        let documents = texts(&reference);
        let expected: Vec<f32> = serde_json::from_value(reference["scores"].clone()).unwrap();
        let query = reference["query"].as_str().unwrap();
        let found = model.rerank(query.into(), documents.clone()).await.unwrap();
        assert_eq!(json!(found.prompt_tokens), reference["tokens"]);
        for ((document, found), expected) in documents.iter().zip(&found.scores).zip(&expected) {
            assert!((found - expected).abs() < 1e-5, "{document}: {found} instead of {expected}");
        }
        for (document, together) in documents.iter().zip(found.scores) {
            let alone = model.rerank(query.into(), vec![document.clone()]).await.unwrap();
            assert_eq!(alone.scores, [together], "alone and in a batch");
        }
        let turned = model.rerank(documents[1].clone(), vec![query.into()]).await.unwrap();
        assert!((turned.scores[0] - expected[1]).abs() > 1e-4, "which text is the query makes a difference");
    }
}

#[tokio::test]
async fn the_encoder_alone_makes_vectors_wherever_its_tensors_lie() {
    let folder = testdata("rerank/xlm-roberta");
    for architecture in ["XLMRobertaModel", "RobertaModel"] {
        for prefix in ["roberta.", ""] {
            let mut copied = Copied::of(&folder);
            copied.config["architectures"] = json!([architecture]);
            let renamed = |(name, tensor): (String, Tensor)| (name.replacen("roberta.", prefix, 1), tensor);
            copied.tensors = copied.tensors.into_iter().filter(|(name, _)| name.starts_with("roberta.")).map(renamed).collect();
            let written = copied.write();
            copy_tokenizer(&folder, written.path());
            let model = load_folder(written.path().into(), LoadOptions::default()).await;
            assert_eq!((model.info().context, &model.info().capabilities), (64, &vec![Capability::Embeddings]));
            let reference = reference("xlm-roberta");
            let expected: Vec<Vec<f32>> = serde_json::from_value(reference["means"].clone()).unwrap();
            let found = model.embed(texts(&reference).into_iter().map(Prompt::Text).collect()).await.unwrap();
            for (found, expected) in found.vectors.iter().flatten().zip(expected.iter().flatten()) {
                assert!((found - expected).abs() < 1e-5, "{found} instead of {expected}");
            }
        }
    }
}

#[tokio::test]
async fn a_model_does_what_it_was_made_for_and_says_so() {
    let model = reranker().await;
    assert_eq!(model.info().capabilities, [Capability::Rerank]);
    let param = |error: HarnessError| match error {
        HarnessError::InvalidRequest { param, message } => (param.unwrap(), message),
        other => panic!("{other}"),
    };
    let (at, message) = param(model.embed(vec![Prompt::Text("a".into())]).await.unwrap_err());
    assert!(at == "model" && message.contains("`embeddings`"), "{message}");
    let embedder = load_folder(testdata("parity/checkpoints/bert"), LoadOptions::default()).await;
    let (at, message) = param(embedder.rerank("a".into(), vec!["b".into()]).await.unwrap_err());
    assert!(at == "model" && message.contains("`rerank`"), "{message}");
    let long = model.rerank("a".into(), vec!["b".into(), "word ".repeat(80)]).await.unwrap_err();
    assert!(matches!(long, HarnessError::ContextLength { context: 64, .. }), "{long}");
}

#[test]
fn a_classifier_of_another_kind_is_refused() {
    for labels in [json!({ "0": "no", "1": "yes" }), json!({}), Value::Null] {
        let folder = checkpoint(|config| config["id2label"] = labels.clone());
        let error = load_config(folder.path()).unwrap_err().to_string();
        assert!(error.contains("id2label") && error.contains("one label"), "{error}");
    }
}
