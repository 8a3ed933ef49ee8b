//! Text to ids and back, whole and piece by piece.

use std::fs;
use std::sync::{Arc, LazyLock};

use neuron_engine::error::LoadError;
use neuron_engine::text::{Detokenizer, StopMatcher, StopOutcome, Tokenizer};
use proptest::prelude::*;

use crate::fixtures::{self, ids};

fn detokenize(tokenizer: &Arc<Tokenizer>, ids: &[u32], skip_special: bool) -> String {
    let mut detokenizer = Detokenizer::new(tokenizer.clone(), skip_special);
    let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
    text.push_str(&detokenizer.flush());
    text
}

#[test]
fn text_becomes_the_same_ids_and_text_again_as_in_transformers() {
    for set in fixtures::sets() {
        let reference = set.refs("chat/tokenizer");
        for name in set.checkpoints().into_iter().filter(|name| !name.contains("bert")) {
            let tokenizer = Arc::new(Tokenizer::from_folder(&set.checkpoint(&name)).unwrap());
            for (token, id) in reference["special_ids"].as_object().unwrap() {
                assert_eq!(tokenizer.token_id(token).map(u64::from), id.as_u64(), "{token}");
                assert_eq!(tokenizer.token_bytes(ids(&serde_json::json!([id]))[0]), token.as_bytes(), "{token}");
            }
            let cases = reference["cases"].as_array().unwrap();
            assert!(!cases.is_empty());
            for case in cases {
                let expected = ids(&case["ids"]);
                assert_eq!(tokenizer.encode(case["text"].as_str().unwrap(), false).unwrap(), expected, "{}", case["text"]);
                for (field, skip_special) in [("decoded", false), ("decoded_skip_special", true)] {
                    assert_eq!(tokenizer.decode(&expected, skip_special), case[field].as_str().unwrap(), "{field} of {}", case["text"]);
                    assert_eq!(detokenize(&tokenizer, &expected, skip_special), case[field].as_str().unwrap());
                }
                for (len, prefix) in (1..).zip(case["prefix_decodes"].as_array().unwrap()) {
                    assert_eq!(tokenizer.decode(&expected[..len], false), prefix.as_str().unwrap(), "{}", case["text"]);
                }
            }
        }
    }
}

#[test]
fn greedy_answers_read_as_in_transformers() {
    for set in fixtures::sets() {
        for name in set.checkpoints().into_iter().filter(|name| !name.contains("bert")) {
            let tokenizer = Arc::new(Tokenizer::from_folder(&set.checkpoint(&name)).unwrap());
            for (case, json) in set.cases(&name) {
                let Some(expected) = json["greedy_text"].as_str() else { continue };
                let greedy = ids(&json["greedy"]);
                let whole = tokenizer.decode(&greedy, false);
                assert!(expected == whole || expected == tokenizer.decode(&greedy, true), "{name}, {case}: {whole}");
                assert_eq!(detokenize(&tokenizer, &greedy, false), whole, "{name}, {case}");
            }
        }
    }
}

#[test]
fn word_pieces_tokenize_as_in_transformers() {
    for set in fixtures::sets() {
        for name in set.checkpoints().into_iter().filter(|name| name.contains("bert")) {
            let tokenizer = Arc::new(Tokenizer::from_folder(&set.checkpoint(&name)).unwrap());
            let cases = set.refs(&format!("{name}/cases"));
            let batch = set.tensors(&format!("{name}/batch"));
            let rows = batch["input_ids"].to_vec2::<i64>().unwrap();
            let masks = batch["attention_mask"].to_vec2::<i64>().unwrap();
            for ((text, row), mask) in cases["texts"].as_array().unwrap().iter().zip(rows).zip(masks) {
                let expected: Vec<u32> = row.iter().zip(mask).filter(|(_, mask)| *mask == 1).map(|(&id, _)| id as u32).collect();
                let found = tokenizer.encode(text.as_str().unwrap(), true).unwrap();
                assert_eq!(found, expected, "{text}");
                assert_eq!(detokenize(&tokenizer, &found, true), tokenizer.decode(&found, true));
            }
        }
    }
}

#[test]
fn ends_of_an_answer_come_from_the_first_file_that_names_them() {
    let donor = fixtures::sets()[0].checkpoint("llama").join("tokenizer.json");
    let generation = |eos: &str| ("generation_config.json", format!("{{\"eos_token_id\": {eos}}}"));
    let config = ("config.json", r#"{"eos_token_id": 7}"#.to_owned());
    let tokenizer_config = ("tokenizer_config.json", r#"{"eos_token": {"content": "<|im_end|>"}}"#.to_owned());
    let cases: [(Vec<(&str, String)>, Option<&[u32]>); 8] = [
        (vec![generation("[602, 600]"), config.clone()], Some(&[602, 600])),
        (vec![generation("602"), config.clone()], Some(&[602])),
        (vec![generation("null"), config.clone()], Some(&[7])),
        (vec![config, tokenizer_config.clone()], Some(&[7])),
        (vec![("config.json", r#"{"text_config": {"eos_token_id": [8]}}"#.to_owned())], Some(&[8])),
        (vec![tokenizer_config], Some(&[602])),
        (vec![], Some(&[])),
        (vec![generation("\"x\"")], None),
    ];
    for (files, expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(&donor, folder.path().join("tokenizer.json")).unwrap();
        for (name, text) in &files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        match (Tokenizer::from_folder(folder.path()), expected) {
            (Ok(tokenizer), Some(expected)) => assert_eq!(tokenizer.eos_ids(), expected, "{files:?}"),
            (Err(LoadError::Malformed { file, .. }), None) => assert!(file.ends_with("generation_config.json")),
            (found, _) => panic!("{files:?}: {found:?}"),
        }
    }
}

#[test]
fn a_folder_without_a_tokenizer_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let error = Tokenizer::from_folder(folder.path()).unwrap_err();
    assert!(matches!(error, LoadError::Missing { .. }) && error.to_string().contains("tokenizer.json"), "{error}");
    fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    assert!(matches!(Tokenizer::from_folder(folder.path()), Err(LoadError::Malformed { .. })));
}

#[test]
fn a_character_appears_when_its_last_byte_came() {
    let tokenizer = &*BYTE_LEVEL;
    let ids = tokenizer.encode("a😀é", false).unwrap();
    let mut detokenizer = Detokenizer::new(tokenizer.clone(), true);
    let pieces: Vec<String> = ids.iter().map(|&id| detokenizer.push(id)).collect();
    assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
    assert_eq!(pieces.concat(), "a😀é");
    assert_eq!(detokenizer.push(ids[1]), "", "the first bytes of a character");
    assert_eq!(detokenizer.flush(), "\u{fffd}");
    assert_eq!(detokenizer.flush(), "");
}

static BYTE_LEVEL: LazyLock<Arc<Tokenizer>> =
    LazyLock::new(|| Arc::new(Tokenizer::from_folder(&fixtures::sets()[0].checkpoint("qwen3-vl")).unwrap()));
static WORD_PIECE: LazyLock<Arc<Tokenizer>> =
    LazyLock::new(|| Arc::new(Tokenizer::from_folder(&fixtures::sets()[0].checkpoint("bert")).unwrap()));

/// A SentencePiece-like tokenizer: `▁` for spaces, byte tokens, and a decoder that drops the first space.
static METASPACE: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let names = ["<unk>", "<s>", "</s>", "▁", "▁a", "b", "▁▁", "é", "\u{fffd}", "<0xE2>", "<0x82>", "<0xAC>", "<0x41>", "<0xFF>"];
    let vocab: serde_json::Map<_, _> = names.iter().zip(0..).map(|(name, id): (_, u32)| ((*name).to_owned(), id.into())).collect();
    let special = |id: u32| {
        serde_json::json!({"id": id, "content": names[id as usize], "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false})
    };
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "added_tokens": [special(0), special(1), special(2)],
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": []}});
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    Arc::new(Tokenizer::from_folder(folder.path()).unwrap())
});

#[test]
fn sentence_pieces_have_bytes_and_wait_for_a_run_of_bytes_to_end() {
    let bytes: Vec<_> = [4, 5, 9, 1].map(|id| METASPACE.token_bytes(id)).to_vec();
    assert_eq!(bytes, [b" a".to_vec(), b"b".to_vec(), vec![0xe2], b"<s>".to_vec()]);
    let mut detokenizer = Detokenizer::new(METASPACE.clone(), true);
    let pieces = [1, 4, 4, 9, 10, 11, 5, 2].map(|id| detokenizer.push(id));
    assert_eq!(pieces, ["", "a", " a", "", "", "", "€b", ""]);
}

proptest! {
    #[test]
    fn pieces_together_equal_the_whole_decode(
        which in 0..3usize, ids in prop::collection::vec(0..640u32, 0..80), skip_special: bool,
    ) {
        let (tokenizer, range) = [(&*BYTE_LEVEL, 640), (&*WORD_PIECE, 230), (&*METASPACE, 16)][which];
        let ids: Vec<u32> = ids.into_iter().map(|id| id % range).collect();
        prop_assert_eq!(detokenize(tokenizer, &ids, skip_special), tokenizer.decode(&ids, skip_special));
    }

    #[test]
    fn our_byte_level_decode_is_the_tokenizers_crates_own(ids in prop::collection::vec(0..640u32, 0..80), skip_special: bool) {
        static PLAIN: LazyLock<tokenizers::Tokenizer> = LazyLock::new(|| {
            tokenizers::Tokenizer::from_file(fixtures::sets()[0].checkpoint("qwen3-vl").join("tokenizer.json")).unwrap()
        });
        prop_assert_eq!(BYTE_LEVEL.decode(&ids, skip_special), PLAIN.decode(&ids, skip_special).unwrap());
    }

    #[test]
    fn bytes_of_tokens_together_are_the_text(text in "\\PC{0,40}") {
        let ids = BYTE_LEVEL.encode(&text, false).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| BYTE_LEVEL.token_bytes(id)).collect();
        prop_assert_eq!(String::from_utf8(bytes).unwrap(), BYTE_LEVEL.decode(&ids, false));
    }
}

/// What the whole stream of pieces gives: the answer, and whether it was stopped.
fn stop(stops: &[&str], pieces: &[&str]) -> (String, bool) {
    let mut matcher = StopMatcher::new(stops.iter().map(|&stop| stop.to_owned()).collect());
    let mut answer = String::new();
    for piece in pieces {
        match matcher.push(piece) {
            StopOutcome::Text(text) => answer.push_str(&text),
            StopOutcome::Stopped { text_before, .. } => return (answer + &text_before, true),
        }
    }
    (answer + &matcher.flush(), false)
}

#[test]
fn an_answer_ends_before_its_first_stop_text() {
    let cases: &[(&[&str], &[&str], &str, bool)] = &[
        (&[], &["a", "b"], "ab", false),
        (&[""], &["a", "b"], "ab", false),
        (&["END"], &["to the E", "N", "D of"], "to the ", true),
        (&["END"], &["EN", "EN"], "ENEN", false),
        (&["b", "ab"], &["xab"], "x", true),
        (&["abcd", "bc"], &["abc", "d"], "a", true),
        (&["abcd", "bc"], &["abcd"], "a", true),
        (&["\n\n", "河水"], &["a\n", "b河", "水\n\n"], "a\nb", true),
        (&["aab"], &["aaa", "ab"], "aa", true),
        (&["é"], &["e", "é"], "e", true),
    ];
    for (stops, pieces, answer, stopped) in cases {
        assert_eq!(stop(stops, pieces), ((*answer).to_owned(), *stopped), "{stops:?} in {pieces:?}");
    }
}

#[test]
fn only_what_may_become_a_stop_text_is_held_back() {
    let mut matcher = StopMatcher::new(vec!["<end>".into(), "\nUser:".into()]);
    let pieces = [("Hello <e", "Hello "), ("m>", "<em>"), ("\nUse", ""), (" it\n", "\nUse it"), ("<en", "\n"), ("", "")];
    for (piece, text) in pieces {
        assert_eq!(matcher.push(piece), StopOutcome::Text(text.into()), "{piece:?}");
    }
    assert_eq!(matcher.push("d>x"), StopOutcome::Stopped { text_before: String::new(), stop: "<end>".into() });
    assert_eq!(matcher.push("more"), StopOutcome::Stopped { text_before: String::new(), stop: "<end>".into() });
    assert_eq!(matcher.flush(), "");
}

proptest! {
    #[test]
    fn the_cutting_of_the_text_does_not_matter(
        stops in prop::collection::vec("[abé]{1,4}", 0..4), text in "[abcé]{0,30}", cuts in prop::collection::vec(0..30usize, 0..12),
    ) {
        let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
        let letters: Vec<String> = text.chars().map(String::from).collect();
        let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
        let mut places: Vec<usize> = cuts.into_iter().filter(|&at| text.is_char_boundary(at)).chain([0, text.len()]).collect();
        places.sort_unstable();
        let pieces: Vec<&str> = places.windows(2).map(|w| &text[w[0]..w[1]]).collect();
        let by_letter = stop(&stops, &letters);
        prop_assert_eq!(&stop(&stops, &pieces), &by_letter);
        prop_assert_eq!(&stop(&stops, &[&text]), &by_letter);
        // Beside the plain definition: the shortest prefix that ends in a stop text, without the longest such ending.
        let plain = text.char_indices().map(|(at, c)| &text[..at + c.len_utf8()]).find_map(|prefix| {
            let endings = stops.iter().filter(|&&stop| prefix.ends_with(stop)).map(|stop| stop.len());
            endings.max().map(|len| (prefix[..prefix.len() - len].to_owned(), true))
        });
        prop_assert_eq!(by_letter, plain.unwrap_or((text.clone(), false)));
    }
}
