//! Configuration as an operator writes it.

use std::path::Path;

use clap::Parser;
use cortex_core::ModelSpec;
use neuron::NeuronConfig;
use neuron::config::{Cli, LogSettings, Secret};

type Vars<'a> = &'a [(&'a str, &'a str)];

fn env(vars: Vars<'_>) -> impl Fn(&str) -> Option<String> {
    move |name| vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
}

fn parse(text: &str, vars: Vars<'_>) -> Result<NeuronConfig, String> {
    NeuronConfig::parse(text, Path::new("neuron.toml"), &env(vars)).map_err(|error| error.to_string())
}

const WHOLE: &str = r#"
listen = "127.0.0.1:0"
preload = ["chat"]
drain_s_max = 5

[[models]]
model_id = "chat"
source = "/models/chat"
context = 4096

[[models]]
model_id = "Qwen/Qwen3-8B"
revision = "main"

[cpu]
ranks = 2

[limits]
waiting_sequences_max = 8
kv_cache_mib_max = 512

[hub]
endpoint = "https://mirror.example/"
cache_dir = "/cache"

[images]
private_networks_allowed = ["10.0.0.0/8"]

[vision]
legacy_rope = true
"#;

#[test]
fn a_whole_file_is_read() {
    let config = parse(WHOLE, &[]).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:0");
    assert_eq!(config.models[0].context, Some(4096));
    assert_eq!(config.models[1].model_id.as_str(), "Qwen/Qwen3-8B");
    assert_eq!((config.cpu.ranks, config.limits.waiting_sequences_max, config.limits.kv_cache_mib_max), (2, 8, Some(512)));
    assert_eq!(config.hub.endpoint, "https://mirror.example");
    assert_eq!(config.images.private_networks_allowed.len(), 1);
    assert!(config.vision.legacy_rope && config.vision.mrope && !config.vision.legacy_positions);
}

#[test]
fn an_empty_file_is_the_defaults() {
    let config = parse("", &[]).unwrap();
    assert_eq!(config, NeuronConfig::default());
    assert_eq!(config.listen.to_string(), "0.0.0.0:13131");
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    let cases: &[(&str, &[&str])] = &[
        ("lisen = \"0.0.0.0:1\"", &["neuron.toml", "line 1", "lisen", "listen"]),
        ("preload = []\n[limits]\nwaiting = 3\n", &["line 3", "waiting", "waiting_sequences_max"]),
        ("[[models]]\nmodel_id = \"a\"\nsorce = \"/x\"\n", &["sorce", "source"]),
        ("listen = \"nowhere\"", &["line 1", "listen"]),
        ("[images]\nprivate_networks_allowed = [\"ten\"]", &["line 2", "`ten` is no network", "10.1.0.0/16"]),
        ("[hub]\ntoken = \"hf_x\"", &["line 2", "token"]),
        ("preload = [\"a\"]", &["`preload` names `a`", "[[models]]"]),
        ("[[models]]\nmodel_id = \"a\"\n[[models]]\nmodel_id = \"a\"", &["`models` name `a` twice"]),
        ("[limits]\nrunning_sequences_max = 0", &["`limits.running_sequences_max` must be at least 1"]),
    ];
    for (text, expected) in cases {
        let error = parse(text, &[]).unwrap_err();
        for part in *expected {
            assert!(error.contains(part), "{text}\n{error}\n does not say {part}");
        }
    }
}

#[test]
fn the_environment_lies_over_the_file() {
    let vars = [
        ("HF_TOKEN", "hf_secret\n"),
        ("HF_ENDPOINT", "https://hub.example/"),
        ("HF_HOME", "/hf"),
        ("HF_HUB_OFFLINE", "1"),
        ("NEURON_VISION_LEGACY_POS", "1"),
        ("NEURON_VISION_LEGACY_ROPE", "0"),
        ("NEURON_MROPE", "0"),
    ];
    let config = parse("[vision]\nlegacy_rope = true\n", &vars).unwrap();
    assert_eq!(config.hub.endpoint, "https://hub.example");
    assert_eq!(config.hub.cache_dir.as_deref(), Some(Path::new("/hf/hub")));
    assert_eq!(config.hub.token_file.as_deref(), Some(Path::new("/hf/token")));
    assert_eq!(config.hub.token, Some(Secret::new("hf_secret")));
    assert!(config.hub.offline);
    assert_eq!((config.vision.legacy_positions, config.vision.legacy_rope, config.vision.mrope), (true, false, false));
    assert!(!format!("{config:?}").contains("hf_secret"));
}

#[test]
fn the_cache_is_where_the_hubs_own_tools_keep_it() {
    let cases: &[(&str, Vars<'_>, Option<&str>)] = &[
        ("", &[("HOME", "/h")], Some("/h/.cache/huggingface/hub")),
        ("", &[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], Some("/x/huggingface/hub")),
        ("", &[("HOME", "/h"), ("HF_HOME", "/hf")], Some("/hf/hub")),
        ("", &[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")], Some("/c")),
        ("[hub]\ncache_dir = \"/own\"", &[("HF_HUB_CACHE", "/c")], Some("/own")),
        ("", &[], None),
    ];
    for (text, vars, expected) in cases {
        assert_eq!(parse(text, vars).unwrap().hub.cache_dir.as_deref(), expected.map(Path::new), "{vars:?}");
    }
}

#[test]
fn a_switch_that_is_neither_on_nor_off_is_refused() {
    for name in ["HF_HUB_OFFLINE", "NEURON_VISION_LEGACY_POS", "NEURON_VISION_LEGACY_ROPE", "NEURON_MROPE"] {
        let error = parse("", &[(name, "maybe")]).unwrap_err();
        assert!(error.contains(name) && error.contains("maybe") && error.contains("1 or 0"), "{error}");
    }
}

#[test]
fn the_command_line_lies_over_everything() {
    type Expected<'a> = &'a [(&'a str, Option<&'a str>)];
    let cases: &[(&[&str], Expected<'_>)] = &[
        (&[], &[]),
        (&["--model", "Qwen/Qwen3-0.6B"], &[("Qwen/Qwen3-0.6B", None)]),
        (&["--model", "./models/cortex-demo"], &[("cortex-demo", Some("./models/cortex-demo"))]),
        (&["--model", "chat=/models/a", "--model", "b"], &[("chat", Some("/models/a")), ("b", None)]),
    ];
    for (arguments, expected) in cases {
        let cli = Cli::try_parse_from(["neuron", "--listen", "127.0.0.1:7"].iter().chain(*arguments)).unwrap();
        let config = cli.resolve(&env(&[])).unwrap();
        let models: Vec<_> = config.models.iter().map(|model| (model.model_id.as_str(), model.source.as_deref())).collect();
        assert_eq!(models, *expected, "{arguments:?}");
        assert_eq!(config.preload, config.models.iter().map(|model| model.model_id.clone()).collect::<Vec<_>>());
        assert_eq!(config.listen.to_string(), "127.0.0.1:7");
    }
}

#[test]
fn a_model_on_the_command_line_keeps_the_options_of_its_entry() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("neuron.toml");
    std::fs::write(&file, "[[models]]\nmodel_id = \"chat\"\nsource = \"/a\"\ncontext = 7\n").unwrap();
    let cli = Cli::try_parse_from(["neuron", "--config", file.to_str().unwrap(), "--model", "chat=/b"]).unwrap();
    let expected = ModelSpec { source: Some("/b".into()), context: Some(7), ..ModelSpec::new("chat") };
    assert_eq!(cli.resolve(&env(&[])).unwrap().models, [expected]);
}

#[test]
fn nonsense_on_the_command_line_is_refused() {
    for arguments in [&["--model", ""][..], &["--model", "=x"], &["--model", "x="], &["--model", "/"], &["--listen", "here"], &["--nope"]] {
        assert!(Cli::try_parse_from(["neuron"].iter().chain(arguments)).is_err(), "{arguments:?}");
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let cli = Cli::try_parse_from(["neuron", "--config", "/nowhere/neuron.toml"]).unwrap();
    let error = cli.resolve(&env(&[])).unwrap_err().to_string();
    assert!(error.contains("/nowhere/neuron.toml") && error.contains("--config"), "{error}");
}

#[test]
fn logs_are_told_by_the_environment() {
    let filter = |vars: Vars<'_>| LogSettings::from_env(&env(vars)).filter;
    assert_eq!(filter(&[]), "info");
    assert_eq!(filter(&[("RUST_LOG", "warn")]), "warn");
    assert_eq!(filter(&[("RUST_LOG", "warn"), ("NEURON_LOG", "debug")]), "debug");
}
