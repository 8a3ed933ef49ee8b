//! Twelve typical mistakes, each with the message as operators see it: `testdata/mistakes/NAME.ncl` and its snapshot.

use crate::program::{complaint, here, run};

const MISTAKES: [&str; 12] = [
    "unknown_field",
    "wrong_type",
    "unknown_host",
    "negative_memory",
    "duplicate_alias",
    "alias_cycle",
    "duplicate_model",
    "infeasible_preload",
    "too_many_devices",
    "missing_comma",
    "missing_import",
    "endless_recursion",
];

#[test]
fn each_mistake_is_told_at_the_operators_line() {
    let folder = here().join("testdata/mistakes");
    for name in MISTAKES {
        let file = format!("{name}.ncl");
        let message = complaint(&folder, &["check", &file]);
        assert!(message.contains(&format!("┌─ {file}:")), "{name} points nowhere:\n{message}");
        assert!(!message.contains("@cortex") && !message.contains("<stdlib"), "{name} shows the library:\n{message}");
        insta::assert_snapshot!(name, message);
    }
}

#[test]
fn the_json_form_has_file_line_and_column() {
    let folder = here().join("testdata/mistakes");
    let output = run(&folder, &["check", "unknown_host.ncl", "--format", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let first = &all[0];
    assert_eq!((first["file"].as_str(), first["line"].as_u64()), (Some("unknown_host.ncl"), Some(8)));
    assert_eq!(first["notes"][0], "did you mean `beast`?");
    assert!(first["column"].as_u64().unwrap() > 1 && first["message"].as_str().unwrap().contains("`baest`"), "{first}");
}

#[test]
fn colour_is_written_when_it_is_asked_for() {
    let message = complaint(&here().join("testdata/mistakes"), &["check", "unknown_host.ncl", "--format", "coloured"]);
    assert!(message.contains("\u{1b}[1;31merror\u{1b}[0m"), "{message:?}");
}
