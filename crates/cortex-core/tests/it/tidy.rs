//! What the design says is absent, enforced by reading the tree: which words may stand in which files, and which crates may
//! reach which others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Words that may stand only in some places.
struct Rule {
    says: &'static str,
    words: &'static [&'static str],
    /// Paths (from the repository root) where the words may stand; judged on sources only.
    allowed: fn(&str) -> bool,
}

const RULES: &[Rule] = &[
    Rule {
        says: "the environment is read in config, the cortex command and build scripts only",
        words: &["env::var", "env::vars", "env::set_var", "env::remove_var"],
        allowed: |path| {
            let is_config = path.ends_with("/config.rs") || path.contains("/src/config/");
            is_config || path.starts_with("crates/cortex-cli/") || path.ends_with("/build.rs") || path.contains("/build/") || is_test(path)
        },
    },
    Rule {
        says: "unsafe lives in neuron-kernels only",
        words: &["unsafe {", "unsafe fn", "unsafe impl", "unsafe trait", "unsafe extern", "allow(unsafe_code)", "expect(unsafe_code"],
        allowed: |path| path.starts_with("crates/neuron-kernels/"),
    },
    Rule {
        says: "only cortex-nickel/src/nickel.rs names Nickel's crates",
        words: &["nickel_lang"],
        allowed: |path| path == "crates/cortex-nickel/src/nickel.rs",
    },
    Rule {
        says: "the cuda feature is known to neuron-kernels and the device thread and memory only",
        words: &["feature = \"cuda\""],
        allowed: |path| {
            path.starts_with("crates/neuron-kernels/")
                || is_test(path)
                || ["thread", "memory"].iter().any(|file| path == format!("crates/neuron-engine/src/device/{file}.rs"))
        },
    },
    Rule {
        says: "model files know neither device nor rank nor build",
        words: &[
            "cfg(feature",
            "cfg!(",
            "env::",
            "is_cuda",
            "is_cpu",
            "Device::Cpu",
            "Device::Cuda",
            "new_cuda",
            "world_size",
            "DeviceKind",
        ],
        allowed: |path| !path.starts_with("crates/neuron-engine/src/models/"),
    },
    Rule { says: "weights are read, never mapped", words: &["memmap", "Mmap", "mmap"], allowed: is_test },
    Rule { says: "nothing is left open", words: &["todo!(", "unimplemented!(", "dbg!(", "#[ignore"], allowed: |_| false },
];

/// House crates and the crates they must never reach, not even through others.
const UNREACHABLE: &[(&str, &[&str])] = &[
    ("cortex-core", &["tokio", "axum", "hyper", "candle-core", "neuron-kernels", "neuron-engine"]),
    ("cortex-gateway", &["candle-core", "neuron-kernels", "neuron-engine", "neuron", "tokenizers"]),
    ("cortex-placement", &["tokio", "axum", "hyper", "candle-core", "nickel-lang-core"]),
    ("cortex-net", &["axum", "cortex-core", "candle-core"]),
    ("cortex-log", &["tokio", "axum", "hyper", "cortex-core"]),
    ("neuron-api", &["candle-core", "neuron-kernels", "neuron-engine", "neuron"]),
    ("neuron-engine", &["axum", "neuron-api", "cortex-gateway"]),
    ("cortex-bench", &["candle-core", "cortex-gateway", "neuron-engine"]),
    ("cortex-cli", &["nickel-lang-core"]),
    ("cortex-nickel", &["tokio", "axum", "candle-core"]),
    ("neuron", &["cortex-gateway", "nickel-lang-core"]),
];

#[test]
fn every_word_stands_only_where_the_design_allows_it() {
    let found: Vec<String> = rust_files().iter().flat_map(|path| violations(&relative(path), &read(path))).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_rules_notice_what_they_forbid() {
    let engine_model = "crates/neuron-engine/src/models/qwen3.rs";
    let cases = [
        ("crates/neuron-engine/src/engine.rs", "let x = std::env::var(\"X\");", 1),
        ("crates/neuron/src/config.rs", "let x = std::env::var(\"X\");", 0),
        ("crates/cortex-cli/src/style.rs", "let x = std::env::var(\"X\");", 0),
        ("crates/neuron-engine/src/engine.rs", "// never std::env::var here", 0),
        ("crates/neuron-engine/src/engine.rs", "let url = \"http://a\"; let x = unsafe { y };", 1),
        ("crates/neuron-kernels/src/cuda/ffi.rs", "unsafe { launch() }", 0),
        ("crates/cortex-gateway/src/app.rs", "use nickel_lang_core::eval;", 1),
        ("crates/neuron-engine/src/layers/linear.rs", "#[cfg(feature = \"cuda\")]", 1),
        ("crates/neuron-engine/src/device/thread.rs", "#[cfg(feature = \"cuda\")]", 0),
        (engine_model, "if x.device().is_cuda() {", 1),
        (engine_model, "#[cfg(test)]", 0),
        ("crates/neuron-engine/src/weights/mod.rs", "let map = MmapOptions::new();", 1),
        ("crates/cortex-core/src/model.rs", "todo!()", 1),
    ];
    for (path, source, expected) in cases {
        assert_eq!(violations(path, source).len(), expected, "{path}: {source}");
    }
}

#[test]
fn crates_reach_only_what_they_may() {
    let lock = Lock::parse(&read(&root().join("Cargo.lock")));
    for (from, forbidden) in UNREACHABLE {
        let reached = lock.reachable(from);
        assert!(reached.contains(*from), "{from} is not in Cargo.lock");
        for name in *forbidden {
            assert!(!reached.contains(*name), "{from} must not reach {name}: {}", lock.path(from, name).join(" -> "));
        }
    }
}

#[test]
fn every_dependency_comes_from_crates_io_and_says_why_it_is_there() {
    let manifest = read(&root().join("Cargo.toml"));
    let dependencies =
        manifest.lines().skip_while(|line| *line != "[workspace.dependencies]").skip(1).take_while(|line| !line.starts_with('['));
    for line in dependencies.filter(|line| line.contains('=') && !line.contains("path = ")) {
        let reason = line.rsplit_once("# ").map_or("", |(_, reason)| reason);
        assert!(reason.len() > 5, "no reason beside this dependency: {line}");
    }
    assert!(!read(&root().join("Cargo.lock")).contains("\"git+"), "a git dependency in Cargo.lock");
    for path in crate_folders() {
        let manifest = read(&path.join("Cargo.toml"));
        let versions = manifest.lines().skip_while(|line| *line != "[dependencies]").filter(|line| line.contains("version = \""));
        assert_eq!(versions.count(), 0, "{} names a version: versions live in the workspace manifest", relative(&path));
    }
}

#[test]
fn each_crate_has_one_test_binary() {
    for path in crate_folders().iter().map(|path| path.join("tests")).filter(|path| path.is_dir()) {
        let names: Vec<String> = list(&path).iter().map(|path| relative(path)).collect();
        assert_eq!(names.len(), 1, "{names:?}");
        assert!(names[0].ends_with("/tests/it"), "{names:?}");
    }
}

#[test]
fn metrics_are_named_once() {
    let is_metric = |word: &str| {
        (word.starts_with("cortex_") || word.starts_with("neuron_"))
            && ["_total", "_seconds", "_bytes", "_ratio"].iter().any(|suffix| word.ends_with(suffix))
    };
    for path in rust_files() {
        let name = relative(&path);
        if name == "crates/cortex-core/src/metrics.rs" || is_test(&name) {
            continue;
        }
        let code = without_comments(read(&path).split("#[cfg(test)]").next().unwrap_or_default());
        let named: Vec<&str> = code.split('"').skip(1).step_by(2).filter(|word| is_metric(word)).collect();
        assert!(named.is_empty(), "{name} names {named:?}: metric names live in cortex-core/src/metrics.rs");
    }
}

/// What `source`, standing at `path`, breaks.
fn violations(path: &str, source: &str) -> Vec<String> {
    let code = without_comments(source);
    let broken = |rule: &&Rule| !(rule.allowed)(path);
    let mut found = Vec::new();
    for rule in RULES.iter().filter(broken) {
        let hit = |line: &&str| rule.words.iter().any(|word| line.contains(word));
        found.extend(code.lines().filter(hit).map(|line| format!("{path}: {} ({})", line.trim(), rule.says)));
    }
    found
}

/// Drops `// …` to the end of each line, but not the `//` of a URL.
fn without_comments(source: &str) -> String {
    let code = |line: &str| {
        let comment = line.match_indices("//").map(|(at, _)| at).find(|at| !line[..*at].ends_with(':'));
        line[..comment.unwrap_or(line.len())].to_owned()
    };
    source.lines().map(code).collect::<Vec<_>>().join("\n")
}

/// The packages of Cargo.lock and what each depends on.
struct Lock(BTreeMap<String, Vec<String>>);

impl Lock {
    fn parse(text: &str) -> Self {
        let mut packages: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for package in text.split("[[package]]").skip(1) {
            let name = package.lines().find_map(|line| line.strip_prefix("name = ")).expect("a package has a name").trim_matches('"');
            let dependency = |line: &str| line.strip_prefix(" \"").and_then(|line| line.split([' ', '"']).next()).map(str::to_owned);
            packages.entry(name.into()).or_default().extend(package.lines().filter_map(dependency));
        }
        Self(packages)
    }

    fn reachable<'a>(&'a self, from: &'a str) -> BTreeSet<&'a str> {
        self.parents(from).into_keys().collect()
    }

    /// One way from `from` to `to`.
    fn path<'a>(&'a self, from: &'a str, to: &'a str) -> Vec<&'a str> {
        let parents = self.parents(from);
        let mut way = vec![to];
        while let Some(Some(parent)) = way.last().and_then(|last| parents.get(*last)) {
            way.push(parent);
        }
        way.reverse();
        way
    }

    /// Everything reached from `from`, each with the package that was seen to need it.
    fn parents<'a>(&'a self, from: &'a str) -> BTreeMap<&'a str, Option<&'a str>> {
        let mut parents = BTreeMap::from([(from, None)]);
        let mut open = vec![from];
        while let Some(name) = open.pop() {
            for next in self.0.get(name).into_iter().flatten() {
                if !parents.contains_key(next.as_str()) {
                    parents.insert(next, Some(name));
                    open.push(next);
                }
            }
        }
        parents
    }
}

/// Sources that are not part of a program.
fn is_test(path: &str) -> bool {
    ["/tests/", "/benches/", "/histories/"].iter().any(|folder| path.contains(folder))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository root")
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).expect("a path in the repository").to_string_lossy().into_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn list(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

fn crate_folders() -> Vec<PathBuf> {
    list(&root().join("crates")).into_iter().filter(|path| path.join("Cargo.toml").is_file()).collect()
}

/// Every Rust file of the house but this one, which must name what it forbids.
fn rust_files() -> Vec<PathBuf> {
    let mut open = crate_folders();
    let mut files = Vec::new();
    while let Some(folder) = open.pop() {
        let (folders, others): (Vec<_>, Vec<_>) = list(&folder).into_iter().partition(|path| path.is_dir());
        open.extend(folders);
        files.extend(others.into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "rs") && !path.ends_with("it/tidy.rs")));
    }
    assert!(files.len() > 20, "the tree was not found");
    files
}
