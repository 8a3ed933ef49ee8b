//! A rendered placement as this node reads it. The files that a booted machine reads in `.ci/nix` are kept here, too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Parser;
use cortex_core::{ModelId, ModelSpec, NodeId};
use cortex_placement::{Certificate, HostDevice, HostPlacement, Placement, Routing};
use neuron::NeuronConfig;
use neuron::config::Cli;

/// Two hosts; `box` has `models`, all of them preloaded in this order.
fn placement(models: &[&str]) -> Placement {
    let source = Some("/srv/models/cortex-demo".to_owned());
    let specs: Vec<ModelSpec> = models.iter().map(|id| ModelSpec { source: source.clone(), ..ModelSpec::new(*id) }).collect();
    let host = |models: &[ModelSpec]| HostPlacement {
        endpoint: "http://127.0.0.1:13131".to_owned(),
        devices: vec![HostDevice { name: "CPU".to_owned(), memory_mb: 4096, compute_capability: None }],
        reserved_mb: 1024,
        models: models.into(),
        preload: models.iter().map(|model| model.model_id.clone()).collect(),
    };
    let hosts = BTreeMap::from([("box".into(), host(&specs)), ("other".into(), host(&[]))]);
    Placement::new(hosts, BTreeMap::new(), Routing::default(), Certificate::default())
}

fn placed(config: NeuronConfig, node: &str) -> Result<NeuronConfig, String> {
    let placed = config.placed(&placement(&["b", "a"]), &NodeId::from(node));
    placed.and_then(NeuronConfig::checked).map_err(|error| error.to_string())
}

#[test]
fn the_models_of_this_host_join_those_of_the_file() {
    let own = ModelSpec { source: Some("/own".into()), ..ModelSpec::new("own") };
    let config = NeuronConfig { models: vec![own], preload: vec!["own".into()], ..NeuronConfig::default() };
    let config = placed(config, "box").unwrap();
    assert_eq!(config.preload, ["own", "b", "a"].map(ModelId::from));
    assert_eq!(config.model(&"a".into()).unwrap().source.as_deref(), Some("/srv/models/cortex-demo"));
    assert_eq!(placed(NeuronConfig::default(), "other").unwrap(), NeuronConfig::default());
}

#[test]
fn what_cannot_be_joined_says_what_to_do() {
    let twice = NeuronConfig { models: vec![ModelSpec::new("a")], ..NeuronConfig::default() };
    let cases = [
        (NeuronConfig::default(), "nobody", "`placement.node` is `nobody`, and the placement has box, other: name one of them"),
        (twice, "box", "`models` has `a`, which the placement declares, too: remove the [[models]] entry"),
    ];
    for (config, node, expected) in cases {
        assert_eq!(placed(config, node).unwrap_err(), expected);
    }
}

#[test]
fn the_file_is_named_on_the_command_line_or_in_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let file = folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let rendered = write("placement.json", &placement(&["a"]).to_json());
    let toml = write("neuron.toml", &format!("[placement]\nfile = {rendered:?}\nnode = \"box\"\n"));
    let edited = write("edited.json", &placement(&["a"]).to_json().replace("4096", "8192"));
    let resolve = |arguments: &[&str]| {
        let cli = Cli::parse_from([&["neuron", "--config", &toml], arguments].concat());
        cli.resolve(&|_| None).map(|config| config.preload).map_err(|error| error.to_string())
    };
    assert_eq!(resolve(&[]).unwrap(), [ModelId::from("a")]);
    let refusals = [
        (edited.as_str(), "it was edited after it was rendered"),
        (toml.as_str(), "it is no rendered placement"),
        ("/nowhere", "cannot read `/nowhere`"),
    ];
    for (file, expected) in refusals {
        let error = resolve(&["--placement", file]).unwrap_err();
        assert!(error.contains(expected) && error.contains(file), "{error}");
    }
}

/// `CORTEX_BLESS=1 cargo test -p neuron` writes them anew.
#[test]
fn the_machine_that_boots_has_placements_of_this_version() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/nix/placement");
    for (name, models) in [("before.json", &["cortex-demo"][..]), ("after.json", &["cortex-demo", "demo-two"])] {
        let file = folder.join(name);
        let text = placement(models).to_json() + "\n";
        if std::env::var_os("CORTEX_BLESS").is_some() {
            std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&file, &text)).unwrap();
        }
        assert_eq!(read(&file), text, "{name} is of another version: bless it");
    }
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}
