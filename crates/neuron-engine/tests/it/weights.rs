//! Checkpoint files: what is read, and how a bad one is refused.

use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use neuron_engine::error::LoadError;
use neuron_engine::weights::{Part, Precision, Totals, Weights};
use serde_json::json;
use tempfile::TempDir;

use crate::fixtures;

fn open(folder: &Path) -> Result<Weights, LoadError> {
    Weights::open(folder, &Device::Cpu, Precision::CPU)
}

/// A folder with one tensor `a.w` `[4, 3]` of 0..12 and a vector `b` `[2]`.
fn small(dtype: DType) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let w = Tensor::arange(0f32, 12., &Device::Cpu).unwrap().reshape((4, 3)).unwrap().to_dtype(dtype).unwrap();
    let b = Tensor::new(&[1f32, 2.], &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
    let tensors = std::collections::HashMap::from([("a.w", w), ("b", b)]);
    candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
    folder
}

/// A file with this header (the length in front is right) and this many bytes of data.
fn file_of(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

fn f32s(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    f32s(tensor).into_iter().map(f32::to_bits).collect()
}

#[test]
fn matrices_stay_as_stored_and_vectors_become_activations() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let folder = small(dtype);
        let weights = open(folder.path()).unwrap();
        let w = weights.pp("a").get(&[4, 3], "w").unwrap();
        assert_eq!((w.dtype(), w.dims(), f32s(&w)), (dtype, [4, 3].as_slice(), (0..12).map(|x| x as f32).collect()));
        let b = weights.vector(2, "b").unwrap();
        assert_eq!((b.dtype(), f32s(&b)), (DType::F32, vec![1., 2.]));
        for held in [DType::F32, DType::F16, DType::BF16] {
            let precision = Precision { matrices: Some(held), ..Precision::CPU };
            let w = Weights::open(folder.path(), &Device::Cpu, precision).unwrap().pp("a").get(&[4, 3], "w").unwrap();
            assert_eq!((w.dtype(), f32s(&w)[11]), (held, 11.), "{dtype:?} held as {held:?}");
        }
    }
}

#[test]
fn slices_stack_in_the_order_asked_for() {
    let folder = small(DType::BF16);
    let weights = open(folder.path()).unwrap().pp("a");
    let cases: [(Vec<Part>, &[usize], &[f32]); 4] = [
        (vec![Part::slice("w", &[4, 3], 0, 1..3)], &[2, 3], &[3., 4., 5., 6., 7., 8.]),
        (vec![Part::slice("w", &[4, 3], 1, 2..3)], &[4, 1], &[2., 5., 8., 11.]),
        (vec![Part::slice("w", &[4, 3], 0, 3..4), Part::slice("w", &[4, 3], 0, 0..1)], &[2, 3], &[9., 10., 11., 0., 1., 2.]),
        (vec![Part::slice("w", &[4, 3], 0, 2..2)], &[0, 3], &[]),
    ];
    for (parts, shape, elements) in cases {
        let stacked = weights.stack(&parts).unwrap();
        assert_eq!(stacked.dims(), shape, "{parts:?}");
        assert_eq!(f32s(&stacked), elements, "{parts:?}");
    }
}

#[test]
fn a_large_slice_is_read_whole() {
    let folder = tempfile::tempdir().unwrap();
    let rows = Tensor::arange(0u32, 300_000, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap().reshape((3, 100_000)).unwrap();
    let tensors = std::collections::HashMap::from([("w", rows)]);
    candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
    let columns = open(folder.path()).unwrap().stack(&[Part::slice("w", &[3, 100_000], 1, 10_000..95_000)]).unwrap();
    let expected: Vec<f32> = (0..3).flat_map(|row| (10_000..95_000).map(move |column| (row * 100_000 + column) as f32)).collect();
    assert!(f32s(&columns) == expected);
}

#[test]
fn every_tensor_of_every_fixture_comes_as_it_is_stored_whole_and_in_halves() {
    let own = fixtures::sets().into_iter().flat_map(|set| set.checkpoints().into_iter().map(move |name| set.checkpoint(&name)));
    for folder in own.chain([fixtures::demo_checkpoint()]) {
        let weights = open(&folder).unwrap();
        let files = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
        let stored: Vec<_> = files.flat_map(|file| candle_core::safetensors::load(file, &Device::Cpu).unwrap()).collect();
        assert_eq!(stored.len(), weights.unread().len(), "{}", folder.display());
        for (name, stored) in stored {
            let (shape, bits) = (stored.dims(), bits(&stored));
            assert_eq!(bits, self::bits(&weights.get(shape, &name).unwrap()), "{name} of {}", folder.display());
            let halves = [shape[0] / 2..shape[0], 0..shape[0] / 2].map(|range| Part::slice(&name, shape, 0, range));
            let (front, back) = bits.split_at(bits.len() / shape[0] * (shape[0] / 2));
            assert_eq!([back, front].concat(), self::bits(&weights.stack(&halves).unwrap()), "{name} of {}", folder.display());
        }
        assert!(weights.unread().is_empty());
    }
}

#[test]
fn headers_tell_the_totals_and_reading_is_remembered() {
    let folder = small(DType::BF16);
    let weights = open(folder.path()).unwrap();
    assert_eq!(weights.totals(), Totals { parameters: 14, bytes: 28, dtype: Some(DType::BF16) });
    assert_eq!(weights.unread(), ["a.w", "b"]);
    assert!(weights.contains("b") && weights.pp("a").contains("w") && !weights.contains("w"));
    weights.pp("a").stack(&[Part::slice("w", &[4, 3], 0, 0..1)]).unwrap();
    assert_eq!(weights.unread(), ["b"]);
}

#[test]
fn a_tensor_that_is_not_as_expected_is_named_with_its_file() {
    let folder = small(DType::F32);
    let weights = open(folder.path()).unwrap().pp("a");
    let cases =
        [("w", vec![4, 4], "tensor `a.w` has the shape [4, 3], but [4, 4] was expected"), ("x", vec![1], "tensor `a.x` is missing")];
    for (name, shape, says) in cases {
        let error = weights.get(&shape, name).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("model.safetensors"), "{error}");
    }
}

#[test]
fn an_element_type_that_cannot_be_loaded_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let header = r#"{"w":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[0,4]}}"#;
    fs::write(folder.path().join("model.safetensors"), file_of(header, 4)).unwrap();
    let error = open(folder.path()).unwrap().get(&[2, 2], "w").unwrap_err().to_string();
    assert!(error.contains("tensor `w` is stored as F8_E4M3") && error.contains("F32, F16 and BF16"), "{error}");
}

#[test]
fn a_broken_file_is_refused_and_named() {
    let tensor =
        |dtype: &str, shape: &str, offsets: &str| format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#);
    let good = tensor("F32", "[2,2]", "[0,16]");
    let huge = (u64::MAX).to_string();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "has 0 bytes"),
        ("too short for a length", vec![1, 2, 3], "has 3 bytes"),
        ("a header longer than the file", [&50u64.to_le_bytes()[..], b"{}"].concat(), "a header of 50 bytes in a file of 10"),
        ("a header of absurd length", [&u64::MAX.to_le_bytes()[..], b"{}"].concat(), "claims a header"),
        ("a header that is not JSON", file_of("{oops", 0), "its header is wrong"),
        ("a header that is not text", [&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat(), "its header is wrong"),
        ("truncated data", file_of(&good, 15), "but the file has"),
        ("data that nobody described", file_of(&good, 17), "but the file has"),
        ("offsets outside the file", file_of(&tensor("F32", "[2,2]", "[1000,1016]"), 16), "its header is wrong"),
        ("offsets that run backwards", file_of(&tensor("F32", "[2,2]", "[16,0]"), 16), "its header is wrong"),
        ("a size that is not the shape's", file_of(&tensor("F32", "[2,3]", "[0,16]"), 16), "its header is wrong"),
        ("a shape that overflows", file_of(&tensor("F32", &format!("[{huge},{huge}]"), "[0,16]"), 16), "its header is wrong"),
        ("an end that overflows", file_of(&tensor("F32", "[2,2]", &format!("[0,{huge}]")), 16), "its header is wrong"),
        ("an unknown element type", file_of(&tensor("F33", "[2,2]", "[0,16]"), 16), "its header is wrong"),
        ("a negative shape", file_of(&tensor("F32", "[-2,2]", "[0,16]"), 16), "its header is wrong"),
    ];
    for (what, bytes, says) in cases {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        let error = open(folder.path()).expect_err(what).to_string();
        assert!(error.contains("model.safetensors") && error.contains("malformed") && error.contains(says), "{what}: {error}");
    }
}

#[test]
fn every_cut_of_a_file_is_refused() {
    let folder = small(DType::F32);
    let file = folder.path().join("model.safetensors");
    let whole = fs::read(&file).unwrap();
    for len in 0..whole.len() {
        fs::write(&file, &whole[..len]).unwrap();
        assert!(open(folder.path()).is_err(), "{len} of {} bytes", whole.len());
    }
}

#[test]
fn an_index_that_does_not_fit_its_files_is_refused() {
    let cases = [
        (json!({"weight_map": {"b": "model.safetensors.part"}}), true, None),
        (json!({"weight_map": {"c": "model.safetensors.part"}}), true, Some("it says that `c` is in `model.safetensors.part`")),
        (json!({"weight_map": {"b": "model.safetensors.part"}}), false, Some("download the model again")),
        (json!({"weight_map": {"b": "../model.safetensors.part"}}), true, Some("is not a plain file name")),
        (json!({"weights": {}}), true, Some("missing field `weight_map`")),
        (json!([1]), true, Some("malformed")),
    ];
    for (index, with_file, says) in cases {
        let folder = small(DType::F32);
        let (single, part) = (folder.path().join("model.safetensors"), folder.path().join("model.safetensors.part"));
        if with_file { fs::rename(&single, &part) } else { fs::remove_file(&single) }.unwrap();
        fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        let found = open(folder.path()).map(|weights| f32s(&weights.vector(2, "b").unwrap())).map_err(|error| error.to_string());
        match says {
            None => assert_eq!(found.unwrap(), [1., 2.], "{index}"),
            Some(says) => assert!(found.as_ref().is_err_and(|error| error.contains(says)), "{index}: {found:?}"),
        }
    }
}

#[test]
fn a_folder_without_weights_says_what_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let error = open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors") && error.contains("index.json"), "{error}");
}
