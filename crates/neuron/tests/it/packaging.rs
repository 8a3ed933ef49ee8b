//! What the packages for other distributions name is there, and what they configure is understood.

use std::path::{Path, PathBuf};

use neuron::NeuronConfig;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Where the files of a package come from, as both kinds of metadata tell it.
fn sources(manifest: &toml::Table, kind: &str) -> Vec<String> {
    let assets = manifest["package"]["metadata"][kind]["assets"].as_array().expect("an asset");
    let source =
        |asset: &toml::Value| asset.get("source").or_else(|| asset.get(0)).and_then(toml::Value::as_str).expect("an asset").to_owned();
    assets.iter().map(source).collect()
}

#[test]
fn packages_name_files_that_exist_and_the_same_in_both_kinds() {
    for krate in ["crates/neuron", "crates/cortex-cli"] {
        let folder = root().join(krate);
        let manifest: toml::Table = read(&folder.join("Cargo.toml")).parse().unwrap();
        let sources_of = |kind| sources(&manifest, kind);
        assert_eq!(sources_of("deb"), sources_of("generate-rpm"), "{krate}");
        for source in sources_of("deb").iter().filter(|source| !source.starts_with("target/release/")) {
            assert!(folder.join(source).is_file(), "{krate} names {source}");
        }
    }
}

#[test]
fn the_packaged_configuration_is_understood_with_every_comment_taken_away() {
    let text = read(&root().join("packaging/neuron.toml"));
    let whole: String = text
        .lines()
        .filter_map(|line| line.strip_prefix("# ").or(Some(line)).filter(|line| is_toml(line)))
        .map(|line| format!("{line}\n"))
        .collect();
    for text in [&text, &whole] {
        NeuronConfig::parse(text, Path::new("neuron.toml"), &|_| None).unwrap_or_else(|error| panic!("{error}\n{text}"));
    }
}

/// Comments hold sentences, too.
fn is_toml(line: &str) -> bool {
    line.starts_with('[') || line.contains(" = ")
}
