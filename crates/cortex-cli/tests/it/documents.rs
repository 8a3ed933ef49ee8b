//! What the documents say is true where a program can tell.

use std::path::{Path, PathBuf};

use cortex_core::config::GatewayConfig;

use crate::support::{command, run};

#[test]
fn configurations_in_the_documents_are_understood() {
    let text = read("docs/running.md");
    let (nodes, gateways): (Vec<&str>, Vec<&str>) = blocks(&text, "toml").into_iter().partition(|block| block.contains("preload ="));
    assert_eq!((gateways.len(), nodes.len()), (5, 1));
    for block in gateways {
        GatewayConfig::parse(block).unwrap_or_else(|error| panic!("{error}\n{block}"));
    }
    #[cfg(feature = "local")]
    for block in nodes {
        neuron::NeuronConfig::parse(block, Path::new("running.md"), &|_| None).unwrap_or_else(|error| panic!("{error}\n{block}"));
    }
}

#[test]
fn the_table_of_commands_lists_every_subcommand() {
    let text = read("docs/running.md");
    let help = run(command(&["--help"]), "").out;
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| line.starts_with("  "));
    let names: Vec<&str> = listed.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").collect();
    assert!(names.len() > 4, "{help}");
    for name in names {
        assert!(text.contains(&format!("| `cortex {name}")), "docs/running.md does not list `cortex {name}`");
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    let documents = [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "docs/README.md",
        "docs/running.md",
        "docs/api.md",
        "docs/errors.md",
        "docs/deploy.md",
        "docs/faults.md",
    ];
    for document in documents {
        let text = read(document);
        let folder = root().join(document).parent().unwrap().to_owned();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).filter(|target| !target.contains("://")) {
            let file = target.split('#').next().unwrap_or_default();
            assert!(folder.join(file).exists(), "{document} links to {target}, which does not exist");
        }
    }
}

/// The fenced blocks of `language`.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    text.split(&format!("```{language}\n")).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}
