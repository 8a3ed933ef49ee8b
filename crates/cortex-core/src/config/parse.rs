//! `cortex.toml` to [`GatewayConfig`], or an error that names the key and the line.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

use super::{
    Endpoint, EvictionSection, GatewayConfig, GatewaySection, KeyEntry, Limits, ModelTerms, NeuronEntry, Residency, TelemetrySection,
    Timeouts,
};
use crate::model::{ModelId, ModelSpec};
use crate::node::NodeId;
use crate::placement::{PlacedModel, Placement};

/// What is wrong in the configuration, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct ConfigError {
    /// Where it stands.
    pub place: Place,
    /// What is wrong and what would be right.
    pub message: String,
}

/// Where a setting stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the file.
    Line {
        /// Counted from 1.
        line: usize,
        /// The key, or the table's header, on that line.
        key: String,
    },
    /// In the environment.
    Variable(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { line, key } if key.is_empty() => write!(f, "line {line}"),
            Self::Line { line, key } => write!(f, "line {line}, `{key}`"),
            Self::Variable(name) => write!(f, "variable {name}"),
        }
    }
}

impl GatewayConfig {
    /// Reads the text of `cortex.toml`. Absent sections and keys take their defaults.
    ///
    /// # Errors
    /// Syntax, unknown keys, values of the wrong type, two nodes with one name or one endpoint, models placed on unknown nodes.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text).map_err(|error| {
            let span = error.span().unwrap_or(text.len()..text.len());
            at(text, &span, error.message())
        })?;
        let neurons = neurons(text, file.neurons)?;
        let terms = terms(text, &file.models)?;
        let placement = placement(text, file.models, &file.aliases, &neurons)?;
        let keys = keys(text, file.keys, &[])?;
        let File { gateway, limits, timeouts, eviction, telemetry, .. } = file;
        Ok(Self { gateway, limits, timeouts, eviction, telemetry, neurons, placement, terms, keys })
    }

    /// Adds the `[[keys]]` of another file, one that fewer may read.
    ///
    /// # Errors
    /// As [`GatewayConfig::parse`], about that file.
    pub fn with_keys(mut self, text: &str) -> Result<Self, ConfigError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct KeysFile {
            #[serde(default)]
            keys: Vec<Spanned<KeyEntry>>,
        }
        let file: KeysFile = toml::from_str(text).map_err(|error| {
            let span = error.span().unwrap_or(text.len()..text.len());
            at(text, &span, error.message())
        })?;
        let more = keys(text, file.keys, &self.keys)?;
        self.keys.extend(more);
        Ok(self)
    }
}

/// The file as it is written; spans tell where a value that is wrong only beside another one stands.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    gateway: GatewaySection,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    timeouts: Timeouts,
    #[serde(default)]
    eviction: EvictionSection,
    #[serde(default)]
    telemetry: TelemetrySection,
    #[serde(default)]
    neurons: Vec<NeuronTable>,
    #[serde(default)]
    models: Vec<ModelTable>,
    #[serde(default)]
    aliases: BTreeMap<Spanned<String>, Spanned<String>>,
    #[serde(default)]
    keys: Vec<Spanned<KeyEntry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NeuronTable {
    name: Spanned<String>,
    endpoint: Spanned<String>,
    ca: Option<Spanned<PathBuf>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelTable {
    id: Spanned<String>,
    source: Option<String>,
    revision: Option<String>,
    dtype: Option<String>,
    quant: Option<String>,
    tensor_parallel: Option<usize>,
    devices: Option<Vec<usize>>,
    context: Option<usize>,
    parallel: Option<usize>,
    #[serde(default)]
    neurons: Vec<Spanned<String>>,
    #[serde(default)]
    fallbacks: Vec<Spanned<String>>,
    vram_mb: Option<u64>,
    residency: Option<Residency>,
    replicas: Option<ReplicasTable>,
    priority: Option<i32>,
    idle_unload_s: Option<u64>,
}

/// Each holder has one name, and each key one holder.
fn keys(text: &str, tables: Vec<Spanned<KeyEntry>>, others: &[KeyEntry]) -> Result<Vec<KeyEntry>, ConfigError> {
    let mut entries: Vec<KeyEntry> = Vec::with_capacity(tables.len());
    for table in tables {
        let span = table.span();
        let entry = table.into_inner();
        if entry.name.trim().is_empty() {
            return Err(at(text, &span, "a key needs a name"));
        }
        if let Some(other) = others.iter().chain(&entries).find(|other| other.name == entry.name || other.sha256 == entry.sha256) {
            return Err(at(text, &span, &format!("the key `{}` has the name or the hash of the key `{}`", entry.name, other.name)));
        }
        entries.push(entry);
    }
    Ok(entries)
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplicasTable {
    min: Option<usize>,
    max: Option<usize>,
}

fn terms(text: &str, tables: &[ModelTable]) -> Result<BTreeMap<ModelId, ModelTerms>, ConfigError> {
    let mut terms = BTreeMap::new();
    for table in tables {
        let ReplicasTable { min, max } = table.replicas.unwrap_or_default();
        let wrong = |message: &str| Err(at(text, &table.id.span(), message));
        if max == Some(0) || min.zip(max).is_some_and(|(min, max)| min > max) {
            return wrong("replicas.max must be at least 1 and at least replicas.min");
        }
        let residency = table.residency.unwrap_or_default();
        match residency {
            Residency::OnDemand if min.is_some_and(|min| min > 0) => {
                return wrong("a model on demand is held by no node always; give it residency = \"resident\" or replicas.min = 0");
            }
            Residency::Pinned | Residency::Resident if min == Some(0) => return wrong("a model that stays has replicas.min of at least 1"),
            _ => {}
        }
        let own = ModelTerms {
            vram_mb: table.vram_mb,
            residency,
            replicas_min: min,
            replicas_max: max,
            priority: table.priority.unwrap_or(ModelTerms::default().priority),
            idle_unload_s: table.idle_unload_s,
        };
        terms.insert(ModelId::from(table.id.as_ref().as_str()), own);
    }
    Ok(terms)
}

fn neurons(text: &str, tables: Vec<NeuronTable>) -> Result<Vec<NeuronEntry>, ConfigError> {
    let mut names: HashMap<String, usize> = HashMap::new();
    let mut endpoints: HashMap<Endpoint, String> = HashMap::new();
    let mut entries = Vec::with_capacity(tables.len());
    for table in tables {
        let NeuronTable { name, endpoint, ca } = table;
        if name.as_ref().trim().is_empty() {
            return Err(at(text, &name.span(), "a node needs a name"));
        }
        if let Some(first) = names.insert(name.as_ref().clone(), line_of(text, name.span().start)) {
            return Err(at(text, &name.span(), &format!("the node `{}` is already defined on line {first}", name.as_ref())));
        }
        let parsed = Endpoint::parse(endpoint.as_ref()).map_err(|message| at(text, &endpoint.span(), &message))?;
        if let Some(other) = endpoints.insert(parsed.clone(), name.as_ref().clone()) {
            return Err(at(text, &endpoint.span(), &format!("the node `{other}` has this endpoint already; one machine is one node")));
        }
        if let Some(ca) = ca.as_ref().filter(|_| parsed.scheme() != "https") {
            return Err(at(
                text,
                &ca.span(),
                "a node at http:// shows no certificate: write its endpoint with https://, or leave this out",
            ));
        }
        entries.push(NeuronEntry { name: NodeId::from(name.into_inner()), endpoint: parsed, ca: ca.map(Spanned::into_inner) });
    }
    Ok(entries)
}

fn placement(
    text: &str,
    tables: Vec<ModelTable>,
    aliases: &BTreeMap<Spanned<String>, Spanned<String>>,
    neurons: &[NeuronEntry],
) -> Result<Placement, ConfigError> {
    let mut lines: HashMap<String, usize> = HashMap::new();
    let mut models = Vec::with_capacity(tables.len());
    let mut fallbacks = BTreeMap::new();
    for table in tables {
        if table.id.as_ref().trim().is_empty() {
            return Err(at(text, &table.id.span(), "a model needs an id"));
        }
        if let Some(first) = lines.insert(table.id.as_ref().clone(), line_of(text, table.id.span().start)) {
            return Err(at(text, &table.id.span(), &format!("the model `{}` is already defined on line {first}", table.id.as_ref())));
        }
        if let Some(unknown) = table.neurons.iter().find(|name| !neurons.iter().any(|entry| entry.name.as_str() == name.as_ref().as_str()))
        {
            return Err(at(text, &unknown.span(), &format!("no [[neurons]] entry is named `{}`", unknown.as_ref())));
        }
        if let Some(own) = table.fallbacks.iter().find(|name| *name.as_ref() == *table.id.as_ref() || aliases.contains_key(*name)) {
            return Err(at(
                text,
                &own.span(),
                &format!("`{}` cannot stand in for `{}`; name another model", own.as_ref(), table.id.as_ref()),
            ));
        }
        let names = table.fallbacks.iter().map(|name| ModelId::from(name.as_ref().as_str())).collect();
        fallbacks.insert(ModelId::from(table.id.as_ref().as_str()), names);
        models.push(table.into_placed());
    }
    let mut targets = BTreeMap::new();
    for (name, target) in aliases {
        if let Some(line) = lines.get(name.as_ref()) {
            return Err(at(text, &name.span(), &format!("`{}` is the model of line {line}, so it cannot be an alias too", name.as_ref())));
        }
        if aliases.contains_key(target) {
            return Err(at(text, &target.span(), &format!("`{}` is itself an alias; name the model", target.as_ref())));
        }
        targets.insert(name.as_ref().clone(), ModelId::from(target.as_ref().as_str()));
    }
    Ok(Placement::new(models, targets).with_fallbacks(fallbacks))
}

impl ModelTable {
    fn into_placed(self) -> PlacedModel {
        let nodes = self.neurons.into_iter().map(|name| NodeId::from(name.into_inner())).collect();
        let spec = ModelSpec {
            source: self.source,
            revision: self.revision,
            dtype: self.dtype,
            quant: self.quant,
            tensor_parallel: self.tensor_parallel,
            devices: self.devices,
            context: self.context,
            parallel: self.parallel,
            ..ModelSpec::new(self.id.into_inner())
        };
        PlacedModel { spec, nodes }
    }
}

fn at(text: &str, span: &Range<usize>, message: &str) -> ConfigError {
    let line = line_of(text, span.start);
    let written = text.lines().nth(line - 1).unwrap_or_default();
    let key = written.split_once('=').map_or(written, |(key, _)| key).trim();
    ConfigError { place: Place::Line { line, key: key.into() }, message: message.trim().into() }
}

/// Counted from 1; `offset` may be the text's length.
fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}
