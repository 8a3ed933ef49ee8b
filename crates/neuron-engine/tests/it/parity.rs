//! Our models give the numbers of the reference implementation, for every checkpoint of every fixture set.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use neuron_engine::device::collective::{Shard, Solo};
use neuron_engine::layers::rotary::Rotary;
use neuron_engine::models::config::{Network, VisionConfig};
use neuron_engine::models::decoder;
use neuron_engine::models::qwen3_vl_vision::VisionSwitches;
use neuron_engine::models::registry::{self, Model};
use neuron_engine::models::{Encoder, Visual};
use neuron_engine::weights::Precision;
use serde_json::Value;

use crate::checkpoints::Copied;
use crate::fixtures::{self, FixtureSet};
use crate::parity_driver::{Driver, Line, Rows, assert_close, assert_same, open};

const LOGITS: f32 = 2e-4;
const ROPE: f32 = 2e-5;
const ENCODER: f32 = 1e-5;

/// A prompt, its references, and what it is called in messages.
struct Case {
    name: String,
    ids: Vec<u32>,
    json: Value,
    tensors: HashMap<String, Tensor>,
}

/// What the reference's vision tower made of its pictures.
struct Seen {
    image_token: u32,
    /// Rows of each picture in the features.
    pictures: HashMap<String, (usize, usize)>,
    tensors: HashMap<String, Tensor>,
}

#[test]
fn every_checkpoint_gives_the_reference_logits_and_greedy_tokens() {
    let mut decoders = 0;
    for (set, name) in all_checkpoints() {
        let (config, _) = open(&set.checkpoint(&name), Precision::CPU);
        match config.network {
            Network::Decoder(_) => decoders += compare_decoder(&set, &name, config.vision.as_ref(), Driver::open),
            Network::Bert(_) => {} // below
        }
    }
    assert!(decoders > 0, "no case was compared");
}

#[test]
fn rotary_tables_are_the_reference_ones_for_texts_and_pictures() {
    let mut compared = 0;
    for (set, name) in all_checkpoints() {
        let (config, _) = open(&set.checkpoint(&name), Precision::CPU);
        let Network::Decoder(decoder) = &config.network else { continue };
        for (case, _) in set.cases(&name) {
            let tensors = set.tensors(&format!("{name}/{case}"));
            if let Some(cos) = tensors.get("rope.cos") {
                compare_rotary(decoder, &tensors, cos, &format!("{name}/{case}"));
                compared += 1;
            }
        }
    }
    assert!(compared > 0, "no table was compared");
}

#[test]
fn every_encoder_gives_the_reference_vectors_alone_and_in_a_batch() {
    let mut encoders = 0;
    for (set, name) in all_checkpoints() {
        let (config, weights) = open(&set.checkpoint(&name), Precision::CPU);
        match registry::build(&config, &weights, Arc::new(Solo), Shard::WHOLE).unwrap() {
            Model::Encoder(encoder) => {
                compare_encoder(encoder.as_ref(), &Device::Cpu, &set.tensors(&format!("{name}/batch")), "normalized", &name);
            }
            Model::Causal(_) => continue,
        }
        assert!(weights.unread().iter().all(|tensor| tensor.starts_with("pooler.")), "{name}: {:?}", weights.unread());
        encoders += 1;
    }
    assert!(encoders > 0, "no encoder was compared");
}

#[test]
fn vectors_are_pooled_as_the_folder_says() {
    const TRANSFORMER: &str = r#"{"path":"","type":"sentence_transformers.models.Transformer"}"#;
    const POOLING: &str = r#"{"path":"1_Pooling","type":"sentence_transformers.models.Pooling"}"#;
    const NORMALISE: &str = r#"{"path":"2_Normalize","type":"sentence_transformers.models.Normalize"}"#;
    let cases = [
        (Some(vec![TRANSFORMER, POOLING, NORMALISE]), r#"{"pooling_mode":"mean"}"#, "normalized"),
        (Some(vec![TRANSFORMER, POOLING]), r#"{"pooling_mode_mean_tokens":true,"pooling_mode_cls_token":false}"#, "mean_pooled"),
        (Some(vec![TRANSFORMER, POOLING]), r#"{"pooling_mode_cls_token":true}"#, "cls"),
        (None, "{}", "mean_pooled"),
    ];
    for (set, name) in all_checkpoints().into_iter().filter(|(set, name)| is_encoder(set, name)) {
        for (modules, pooling, expected) in &cases {
            let copy = Copied::of(&set.checkpoint(&name)).write();
            std::fs::create_dir(copy.path().join("1_Pooling")).unwrap();
            std::fs::write(copy.path().join("1_Pooling/config.json"), pooling).unwrap();
            if let Some(modules) = modules {
                std::fs::write(copy.path().join("modules.json"), format!("[{}]", modules.join(","))).unwrap();
            }
            let (config, weights) = open(copy.path(), Precision::CPU);
            let Ok(Model::Encoder(encoder)) = registry::build(&config, &weights, Arc::new(Solo), Shard::WHOLE) else { panic!("{name}") };
            compare_encoder(encoder.as_ref(), &Device::Cpu, &set.tensors(&format!("{name}/batch")), expected, &name);
        }
    }
}

fn is_encoder(set: &FixtureSet, name: &str) -> bool {
    matches!(open(&set.checkpoint(name), Precision::CPU).0.network, Network::Bert(_))
}

#[test]
fn every_weight_of_a_decoder_and_its_eyes_is_read() {
    for (set, name) in all_checkpoints().into_iter().filter(|(set, name)| !is_encoder(set, name)) {
        let (config, weights) = open(&set.checkpoint(&name), Precision::CPU);
        registry::build(&config, &weights, Arc::new(Solo), Shard::WHOLE).unwrap();
        registry::build_vision(&config, &weights, VisionSwitches::default()).unwrap();
        assert!(weights.unread().is_empty(), "{name}: {:?}", weights.unread());
    }
}

pub(crate) fn all_checkpoints() -> Vec<(Arc<FixtureSet>, String)> {
    let of_set = |set: FixtureSet| {
        let set = Arc::new(set);
        set.checkpoints().into_iter().map(move |name| (set.clone(), name)).collect::<Vec<_>>()
    };
    fixtures::sets().into_iter().flat_map(of_set).collect()
}

/// The prompts of a language model that show no picture.
pub(crate) fn text_prompts(set: &FixtureSet, checkpoint: &str) -> Vec<Vec<u32>> {
    cases(set, checkpoint).into_iter().filter(|case| case.images().is_empty()).map(|case| case.ids).collect()
}

fn cases(set: &FixtureSet, checkpoint: &str) -> Vec<Case> {
    let case = |(name, json)| {
        let name = format!("{checkpoint}/{name}");
        let tensors = set.tensors(&name);
        Case { ids: u32s(&tensors["input_ids"]), name, json, tensors }
    };
    set.cases(checkpoint).into_iter().map(case).collect()
}

pub(crate) fn compare_decoder(
    set: &FixtureSet,
    checkpoint: &str,
    vision: Option<&VisionConfig>,
    driver: impl Fn(&Path) -> Driver,
) -> usize {
    let seen = vision.map(|vision| Seen::by_reference(set, checkpoint, vision));
    let mut driver = driver(&set.checkpoint(checkpoint));
    let mut compared = 0;
    for case in cases(set, checkpoint) {
        let visual = match &seen {
            _ if case.images().is_empty() => None,
            // A picture that the reference kept no features of cannot be shown.
            Some(seen) if !case.images().iter().all(|image| seen.pictures.contains_key(*image)) => continue,
            Some(seen) => Some(seen.show(&case)),
            None => panic!("{} shows pictures to a model that sees none", case.name),
        };
        compare_case(&mut driver, &case, visual);
        compared += 1;
    }
    compared
}

fn compare_case(driver: &mut Driver, case: &Case, visual: Option<Visual>) {
    let Case { name, ids, json, tensors } = case;
    let at = driver.add(match tensors.get("position_ids") {
        Some(positions) => Line::with_positions(ids, positions, json["rope_delta"].as_i64().unwrap()),
        None => Line::text(ids),
    });
    let logits = driver.step(&[(at, ids.len())], Rows::All, visual);
    let compared = match tensors.get("logit_rows") {
        Some(rows) => logits.index_select(&Tensor::new(u32s(rows), &Device::Cpu).unwrap(), 0).unwrap(),
        None => logits.clone(),
    };
    assert_close(&compared, &tensors["logits"], LOGITS, &format!("{name}: logits"));
    let greedy = fixtures::ids(&json["greedy"]);
    let last = driver.greedy(at, &logits, greedy.len());
    assert_eq!(driver.lines[at].tokens[ids.len()..], greedy, "{name}: greedy tokens");
    assert_close(&Tensor::new(last, &Device::Cpu).unwrap(), &tensors["last_step_logits"], LOGITS, &format!("{name}: last logits"));
}

impl Case {
    /// Names of the pictures shown, in order.
    fn images(&self) -> Vec<&str> {
        self.json["images"].as_array().into_iter().flatten().map(|image| image.as_str().unwrap()).collect()
    }
}

impl Seen {
    fn by_reference(set: &FixtureSet, checkpoint: &str, vision: &VisionConfig) -> Self {
        let tensors = set.tensors(&format!("{checkpoint}/vision"));
        let merge = vision.tower.size("spatial_merge_size").unwrap();
        let grids = tensors["grid_thw"].to_vec2::<i64>().unwrap();
        let names = set.refs(&format!("{checkpoint}/cases"))["vision_images"].clone();
        let (mut pictures, mut next) = (HashMap::new(), 0);
        for (name, grid) in names.as_array().unwrap().iter().zip(grids) {
            let rows = grid.iter().product::<i64>() as usize / (merge * merge);
            pictures.insert(name.as_str().unwrap().to_owned(), (next, rows));
            next += rows;
        }
        Self { image_token: vision.image_token_id, pictures, tensors }
    }

    /// The features of the pictures that `case` shows, at its image tokens.
    fn show(&self, case: &Case) -> Visual {
        let of_case = |features: &Tensor| {
            let pictures = case.images().into_iter().map(|image| self.pictures[image]);
            let parts: Vec<_> = pictures.map(|(first, rows)| features.narrow(0, first, rows).unwrap()).collect();
            Tensor::cat(&parts, 0).unwrap()
        };
        let rows: Vec<u32> = (0..case.ids.len() as u32).filter(|row| case.ids[*row as usize] == self.image_token).collect();
        let deepstack = (0..).map_while(|k| self.tensors.get(&format!("deepstack.{k}"))).map(of_case).collect();
        Visual { rows: Tensor::new(rows, &Device::Cpu).unwrap(), features: of_case(&self.tensors["merged"]), deepstack }
    }
}

fn compare_rotary(config: &decoder::Config, tensors: &HashMap<String, Tensor>, cos: &Tensor, what: &str) {
    let rotary = Rotary::new(&config.rope, config.heads.dim, &Device::Cpu).unwrap();
    let tokens = cos.dim(0).unwrap();
    let positions = match tensors.get("position_ids") {
        Some(positions) => positions.to_dtype(DType::U32).unwrap(),
        None => Tensor::arange(0, tokens as u32, &Device::Cpu).unwrap().broadcast_as((3, tokens)).unwrap(),
    };
    let table = rotary.table(&positions).unwrap();
    let twice = |half: &Tensor| Tensor::cat(&[half, half], 1).unwrap();
    assert_close(&twice(table.cos()), cos, ROPE, &format!("{what}: cos"));
    assert_close(&twice(table.sin()), &tensors["rope.sin"], ROPE, &format!("{what}: sin"));
}

pub(crate) fn compare_encoder(encoder: &dyn Encoder, device: &Device, tensors: &HashMap<String, Tensor>, expected: &str, name: &str) {
    let (ids, mask) = (&tensors["input_ids"], &tensors["attention_mask"]);
    let lens: Vec<usize> = mask.sum(1).unwrap().to_vec1::<i64>().unwrap().into_iter().map(|len| len as usize).collect();
    let texts: Vec<Vec<u32>> = lens.iter().enumerate().map(|(i, len)| u32s(&ids.get(i).unwrap())[..*len].to_vec()).collect();
    let encode = |ids: Vec<u32>, lens: &[usize]| {
        let types = Tensor::zeros(ids.len(), DType::U32, device).unwrap();
        let vectors = encoder.encode(&Tensor::new(ids, device).unwrap(), &types, lens).unwrap();
        vectors.to_device(&Device::Cpu).unwrap()
    };
    let batch = encode(texts.concat(), &lens);
    assert_close(&batch, &tensors[expected], ENCODER, &format!("{name}: {expected}"));
    for (i, (text, len)) in texts.into_iter().zip(&lens).enumerate() {
        let single = encode(text, &[*len]);
        let (row, what) = (batch.narrow(0, i, 1).unwrap(), format!("{name}: text {i} alone and in a batch"));
        match device {
            Device::Cpu => assert_same(&single, &row, &what),
            _ => assert_close(&single, &row, ENCODER, &what),
        }
    }
}

fn u32s(ids: &Tensor) -> Vec<u32> {
    ids.to_dtype(DType::U32).unwrap().to_vec1().unwrap()
}
