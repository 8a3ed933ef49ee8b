//! Pictures: every number on the way from a PNG to the answer is the reference's.

use std::fs;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use cortex_core::{GenerateRequest, Prompt};
use neuron_engine::frontend::RopePositions;
use neuron_engine::image::positions::{Run, rope_index};
use neuron_engine::image::{Detail, EncodedImage, Grid, ImageProcessor, PixelLimits, PreparedImage, smart_resize};
use neuron_engine::models::config::VisionConfig;
use neuron_engine::models::qwen3_vl_vision::{Model, VisionSwitches, axis};
use neuron_engine::models::registry::load_config;
use neuron_engine::weights::{Precision, Weights};
use neuron_engine::{EngineLimits, LoadOptions, Switches};
use serde_json::Value;

use crate::engine::{Answer, alone, answer, load_folder, request, together};
use crate::fixtures::{FixtureSet, demo_checkpoint, ids, sets};

const TABLES: f32 = 2e-5;
const TOWER: f32 = 1e-4;
const PIXELS: f32 = 1e-6;

/// A checkpoint that sees, in one of the fixture sets.
struct Seeing {
    set: FixtureSet,
    name: String,
    vision: VisionConfig,
}

impl Seeing {
    fn all() -> Vec<Self> {
        let mut found = Vec::new();
        for set in sets() {
            for name in set.checkpoints() {
                if let Some(vision) = load_config(&set.checkpoint(&name)).unwrap().vision {
                    found.push(Self { set: FixtureSet { root: set.root.clone() }, name, vision });
                }
            }
        }
        assert!(!found.is_empty(), "no checkpoint with eyes");
        found
    }

    fn folder(&self) -> PathBuf {
        self.set.checkpoint(&self.name)
    }

    fn processor(&self) -> ImageProcessor {
        ImageProcessor::from_folder(&self.folder()).unwrap()
    }

    fn refs(&self, file: &str) -> Value {
        self.set.refs(&format!("{}/{file}", self.name))
    }

    fn picture(&self, name: &str) -> Vec<u8> {
        let images = self.set.refs("preprocess/images");
        fs::read(self.set.root.join(images["images"][name]["file"].as_str().unwrap())).unwrap()
    }

    fn tower(&self, switches: VisionSwitches) -> Model {
        let weights = Weights::open(&self.folder(), &Device::Cpu, Precision::CPU).unwrap();
        Model::load(&self.vision, &weights.pp("model.visual"), switches).unwrap()
    }
}

fn names(json: &Value) -> Vec<String> {
    json.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_string()).collect()
}

fn close(found: &Tensor, expected: &Tensor, tolerance: f32, what: &str) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let off = (found - expected).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    assert!(off <= tolerance, "{what}: off by {off}");
}

fn grid(json: &Value) -> Grid {
    let side = |i: usize| json[i].as_u64().unwrap() as usize;
    Grid { h: side(1), w: side(2) }
}

#[test]
fn pictures_are_resized_to_the_same_bytes_and_cut_into_the_same_patches() {
    for seeing in Seeing::all() {
        let processor = seeing.processor();
        let tensors = seeing.set.tensors("preprocess/images");
        let images = seeing.set.refs("preprocess/images");
        for (name, facts) in images["images"].as_object().unwrap() {
            let image = processor.prepare(&seeing.picture(name), Detail::Full).unwrap();
            assert_eq!(image.grid, grid(&facts["grid_thw"]), "{name}");
            assert_eq!(image.tokens() as u64, facts["llm_tokens"].as_u64().unwrap(), "{name}");
            let expected = tensors[&format!("{name}.resized_u8")].flatten_all().unwrap().to_vec1::<u8>().unwrap();
            assert!(image.rgb().pixels == expected, "{name}: the resized bytes differ");
            if let Some(expected) = tensors.get(&format!("{name}.pixel_values")) {
                close(&pixels(&[&image]), expected, PIXELS, name);
            }
        }
    }
}

fn pixels(images: &[&PreparedImage]) -> Tensor {
    let values: Vec<f32> = images.iter().flat_map(|image| image.pixel_values()).collect();
    let patches: usize = images.iter().map(|image| image.grid.patches()).sum();
    let width = values.len() / patches;
    Tensor::from_vec(values, (patches, width), &Device::Cpu).unwrap()
}

#[test]
fn sizes_are_chosen_as_the_reference_chooses_them() {
    let mut compared = 0;
    for set in sets() {
        for case in set.refs("preprocess/images")["smart_resize"].as_array().unwrap() {
            let number = |name: &str| case[name].as_u64().unwrap();
            let limits = PixelLimits { min: number("min_pixels"), max: number("max_pixels") };
            let found = smart_resize(number("height") as u32, number("width") as u32, number("factor") as usize, limits);
            let expected = ids(&case["result"]);
            assert_eq!(found, Ok((expected[0] as usize, expected[1] as usize)), "{case}");
            compared += 1;
        }
    }
    assert!(compared > 0);
}

#[test]
fn positions_of_texts_pictures_and_videos_are_the_reference_ones() {
    let mut compared = 0;
    for seeing in Seeing::all() {
        let merge = seeing.processor().patches().merge;
        for case in seeing.refs("rope_index").as_array().unwrap() {
            let pad = case["pad_left"].as_u64().unwrap() as usize;
            let ids = &ids(&case["input_ids"])[pad..];
            let found = rope_index(ids.len(), &runs(&seeing.vision, ids, case), merge);
            let row = |axis: usize| crate::fixtures::ids(&case["position_ids"][axis])[pad..].to_vec();
            let rows: Vec<_> = row(0).into_iter().zip(row(1)).zip(row(2)).map(|((t, h), w)| [t, h, w]).collect();
            assert_eq!(found.rows, rows, "{case}");
            assert_eq!(i64::from(found.delta) - pad as i64, case["rope_delta"].as_i64().unwrap(), "{case}");
            compared += 1;
        }
    }
    assert!(compared > 0);
}

/// Each run of picture or video tokens, with its grid; a video shows one grid per pair of frames.
fn runs(vision: &VisionConfig, ids: &[u32], case: &Value) -> Vec<Run> {
    let grids = |name: &str| {
        case[name].as_array().unwrap().iter().flat_map(|thw| vec![grid(thw); thw[0].as_u64().unwrap() as usize]).collect::<Vec<_>>()
    };
    let (mut images, mut videos) = (grids("image_grid_thw").into_iter(), grids("video_grid_thw").into_iter());
    let starts = (0..ids.len()).filter(|&i| i == 0 || ids[i - 1] != ids[i]);
    starts
        .filter_map(|start| match ids[start] {
            id if id == vision.image_token_id => Some(Run { start, grid: images.next().unwrap() }),
            id if id == vision.video_token_id => Some(Run { start, grid: videos.next().unwrap() }),
            _ => None,
        })
        .collect()
}

#[test]
fn the_position_table_is_stretched_as_the_reference_stretches_it() {
    let mut compared = 0;
    for seeing in Seeing::all() {
        let table = seeing.refs("pos_embed_axis");
        let side = table["grid_side"].as_u64().unwrap() as usize;
        for case in table["axes"].as_array().unwrap() {
            let found = axis(case["n"].as_u64().unwrap() as usize, side);
            assert_eq!(found.iter().map(|place| place.low as u32).collect::<Vec<_>>(), ids(&case["floor"]), "{case}");
            let fractions = case["frac"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32);
            assert!(found.iter().zip(fractions).all(|(place, fraction)| (place.fraction - fraction).abs() < TABLES), "{case}");
            compared += 1;
        }
    }
    assert!(compared > 0);
}

#[test]
fn the_tower_gives_the_reference_numbers_from_patches_to_features() {
    for seeing in Seeing::all() {
        let expected = seeing.set.tensors(&format!("{}/vision", seeing.name));
        let processor = seeing.processor();
        let images: Vec<_> = names(&seeing.refs("cases")["vision_images"])
            .iter()
            .map(|name| processor.prepare(&seeing.picture(name), Detail::Full).unwrap())
            .collect();
        let grids: Vec<_> = images.iter().map(|image| image.grid).collect();
        let trace = seeing.tower(VisionSwitches::default()).trace(&pixels(&images.iter().collect::<Vec<_>>()), &grids).unwrap();
        close(&trace.patch_embed, &expected["patch_embed"], TOWER, "patch_embed");
        close(&trace.pos_embed, &expected["pos_embed"], TABLES, "pos_embed");
        let (cos, sin) = trace.rope.unwrap();
        for (found, name) in [(cos, "rope.cos"), (sin, "rope.sin")] {
            close(&Tensor::cat(&[&found, &found], 1).unwrap(), &expected[name], TABLES, name);
        }
        let blocks = trace.blocks.iter().enumerate().map(|(i, found)| (format!("block.{i}.out"), found));
        for (name, found) in blocks.filter(|(name, _)| expected.contains_key(name)) {
            close(found, &expected[&name], TOWER, &name);
        }
        close(&trace.features.merged, &expected["merged"], TOWER, "merged");
        for (k, found) in trace.features.deepstack.iter().enumerate() {
            let name = format!("deepstack.{k}");
            close(found, &expected[&name], TOWER, &name);
        }
    }
}

#[test]
fn each_switch_changes_what_the_tower_sees() {
    for seeing in Seeing::all() {
        let image = seeing.processor().prepare(&seeing.picture(&names(&seeing.refs("cases")["vision_images"])[0]), Detail::Full).unwrap();
        let merged = |legacy_positions, legacy_rope| {
            let tower = seeing.tower(VisionSwitches { legacy_positions, legacy_rope });
            tower.trace(&pixels(&[&image]), &[image.grid]).unwrap().features.merged.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let trained = merged(false, false);
        assert_ne!(trained, merged(true, false), "positions");
        assert_ne!(trained, merged(false, true), "rope");
    }
}

/// A prompt of the references, with its pictures as files.
struct Shown {
    request: GenerateRequest,
    images: Vec<EncodedImage>,
    greedy: Vec<u32>,
}

fn shown(seeing: &Seeing) -> Vec<Shown> {
    let cases = seeing.set.cases(&seeing.name).into_iter();
    let case = |(_, case): (String, Value)| {
        let greedy = ids(&case["greedy"]);
        let mut request = request(vec![], greedy.len() as u32);
        request.prompt = Prompt::Text(case["text"].as_str().unwrap().into());
        Shown { request, images: names(&case["images"]).iter().map(|name| seeing.picture(name).into()).collect(), greedy }
    };
    cases.map(case).collect()
}

fn split(shown: &[Shown]) -> Vec<(GenerateRequest, Vec<EncodedImage>)> {
    shown.iter().map(|shown| (shown.request.clone(), shown.images.clone())).collect()
}

#[tokio::test]
async fn from_the_raw_picture_to_the_last_token_the_answer_is_the_reference_one() {
    for seeing in Seeing::all() {
        let model = load_folder(seeing.folder(), LoadOptions::default()).await;
        for shown in shown(&seeing) {
            let found = answer(&model, shown.request, shown.images).await.unwrap();
            assert_eq!(found.tokens(), shown.greedy, "{}", seeing.name);
        }
    }
}

#[tokio::test]
async fn pictures_answer_the_same_in_company_and_in_chunks_that_cut_them() {
    for seeing in Seeing::all() {
        let load = |step_tokens_max| {
            let limits = EngineLimits { step_tokens_max, prefix_cache: false, ..Default::default() };
            load_folder(seeing.folder(), LoadOptions { limits, ..Default::default() })
        };
        let requests = split(&shown(&seeing));
        let expected = alone(&load(512).await, &requests).await;
        assert_eq!(together(&load(512).await, &requests).await, expected, "{}: together", seeing.name);
        assert_eq!(together(&load(5).await, &requests).await, expected, "{}: in chunks", seeing.name);
    }
}

#[tokio::test]
async fn the_same_picture_is_found_in_the_cache_and_another_of_its_size_is_not() {
    for seeing in Seeing::all() {
        let model = load_folder(seeing.folder(), LoadOptions::default()).await;
        let shown = shown(&seeing).into_iter().filter(|shown| !shown.images.is_empty()).max_by_key(|shown| shown.images.len()).unwrap();
        let cold = answer(&model, shown.request.clone(), shown.images.clone()).await.unwrap();
        let warm = answer(&model, shown.request.clone(), shown.images.clone()).await.unwrap();
        assert!(warm.usage.cached_tokens > 0);
        assert_eq!(cold.without_cache(), warm.clone().without_cache());
        let other = answer(&model, shown.request, shown.images.iter().map(|image| inverted(&image.bytes).into()).collect()).await.unwrap();
        assert!(other.usage.cached_tokens < warm.usage.cached_tokens, "another picture of the same size");
        assert_ne!(Answer::tokens(&other), warm.tokens());
    }
}

/// A picture of the same size and other colours.
fn inverted(png: &[u8]) -> Vec<u8> {
    let mut picture = image::load_from_memory(png).unwrap().into_rgb8();
    picture.pixels_mut().for_each(|pixel| pixel.0 = pixel.0.map(|value| 255 - value));
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

#[tokio::test]
async fn low_detail_shortens_the_prompt_where_the_picture_is_large_and_is_another_picture_to_the_cache() {
    let model = load_folder(demo_checkpoint(), LoadOptions::default()).await;
    let picture = |side| {
        let noise = image::RgbImage::from_fn(side, side, |x, y| image::Rgb([(x * y) as u8, x as u8, y as u8]));
        let mut png = std::io::Cursor::new(Vec::new());
        noise.write_to(&mut png, image::ImageFormat::Png).unwrap();
        png.into_inner()
    };
    // The demo model shows a picture as up to 100 tokens of 32 x 32 pixels.
    for (side, full_tokens, low_tokens) in [(320, 100, 81), (256, 64, 64)] {
        let ask = |detail| {
            let mut request = request(vec![], 1);
            request.prompt = Prompt::Text("<|vision_start|><|image_pad|><|vision_end|>".into());
            answer(&model, request, vec![EncodedImage { bytes: picture(side), detail }])
        };
        let full = ask(Detail::Full).await.unwrap().usage;
        let low = ask(Detail::Low).await.unwrap().usage;
        assert_eq!((full.prompt_tokens, low.prompt_tokens), (full_tokens + 2, low_tokens + 2), "{side} x {side}");
        assert_eq!(low.cached_tokens > 0, full_tokens == low_tokens, "{side} x {side}");
    }
}

#[tokio::test]
async fn sequential_positions_change_the_answer() {
    for seeing in Seeing::all() {
        let requests = split(&shown(&seeing));
        let trained = alone(&load_folder(seeing.folder(), LoadOptions::default()).await, &requests).await;
        let switches = Switches { positions: RopePositions::Sequential, ..Default::default() };
        let sequential = alone(&load_folder(seeing.folder(), LoadOptions { switches, ..Default::default() }).await, &requests).await;
        for ((request, images), (a, b)) in requests.iter().zip(trained.iter().zip(&sequential)) {
            assert_eq!(images.is_empty(), a == b, "{:?}", request.prompt);
        }
    }
}

#[test]
fn what_is_no_picture_is_refused_in_words() {
    let processor = Seeing::all().remove(0).processor();
    let picture = Seeing::all().remove(0).picture("square");
    let truncated = &picture[..picture.len() / 2];
    // A GIF of 65,535 x 65,535 pixels in 30 bytes.
    let bomb = b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\xff\xff\xff\xff\x00\x02\x02\x4c\x01\x00;";
    for (bytes, word) in [(&b"hello"[..], "PNG"), (&[], "PNG"), (truncated, "decoded"), (bomb, "pixels"), (b"BM\x00\x00\x00\x00", "PNG")] {
        let refused = processor.prepare(bytes, Detail::Full).unwrap_err().to_string();
        assert!(refused.contains(word), "{refused}");
    }
}
