//! The JSON form of a rendered placement.

use cortex_placement::{Placement, PlacementError};

use crate::fleet::{model, placement};

fn sample() -> Placement {
    placement(&[("beast", &[32_607, 32_607])], &[model("qwen3-8b", 18_000).home("beast", &[0]).on(&["beast"])])
}

#[test]
fn what_is_written_is_read_again() {
    let placement = sample();
    assert_eq!(Placement::from_json(&placement.to_json()), Ok(placement));
}

#[test]
fn the_generation_is_the_content() {
    let (one, same) = (sample(), sample());
    assert_eq!(one.generation, same.generation);
    let other = placement(&[("beast", &[32_607, 32_607])], &[model("qwen3-8b", 18_001).home("beast", &[0]).on(&["beast"])]);
    assert_ne!(one.generation, other.generation);
}

#[test]
fn a_file_that_was_edited_or_is_of_another_version_is_refused() {
    let json = sample().to_json();
    let edited = Placement::from_json(&json.replace("18000", "17000"));
    assert!(matches!(edited, Err(PlacementError::Edited { .. })), "{edited:?}");
    let newer = Placement::from_json(&json.replace("\"version\": 1", "\"version\": 2"));
    assert_eq!(newer, Err(PlacementError::Version { found: 2 }));
    let no_json = Placement::from_json("models = {}");
    assert!(matches!(no_json, Err(PlacementError::Malformed(_))), "{no_json:?}");
}
