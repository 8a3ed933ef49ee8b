//! What the operator wants served, and where: the declared half of the fleet (nodes report the other half).

use std::collections::BTreeMap;

use crate::model::{ModelId, ModelSpec};
use crate::node::NodeId;

/// Declared models and names for them. Models that nodes report without being declared are served too.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Placement {
    models: BTreeMap<ModelId, PlacedModel>,
    aliases: BTreeMap<String, ModelId>,
    fallbacks: BTreeMap<ModelId, Vec<ModelId>>,
}

/// One declared model.
#[derive(Clone, Debug, PartialEq)]
pub struct PlacedModel {
    /// How a node loads it.
    pub spec: ModelSpec,
    /// The nodes that may load it; empty: any.
    pub nodes: Vec<NodeId>,
}

impl Placement {
    /// Models by id, aliases by name. The caller has checked that no alias is also a model or points at an alias.
    pub fn new(models: impl IntoIterator<Item = PlacedModel>, aliases: BTreeMap<String, ModelId>) -> Self {
        let models = models.into_iter().map(|model| (model.spec.model_id.clone(), model)).collect();
        Self { models, aliases, fallbacks: BTreeMap::new() }
    }

    /// The models that may answer in another one's place.
    pub fn with_fallbacks(mut self, fallbacks: BTreeMap<ModelId, Vec<ModelId>>) -> Self {
        self.fallbacks = fallbacks;
        self
    }

    /// The models that may answer in place of `model` when it cannot, in this order.
    pub fn fallbacks(&self, model: &ModelId) -> &[ModelId] {
        self.fallbacks.get(model).map_or(&[], Vec::as_slice)
    }

    /// The declared models, sorted by id.
    pub fn models(&self) -> impl Iterator<Item = &PlacedModel> {
        self.models.values()
    }

    /// Other names, each with the model it stands for.
    pub fn aliases(&self) -> &BTreeMap<String, ModelId> {
        &self.aliases
    }

    /// The model that `name` stands for, where it is an alias.
    pub fn alias_target(&self, name: &str) -> Option<&ModelId> {
        self.aliases.get(name)
    }

    /// How to load `model`: as declared, or by its id alone.
    pub fn spec(&self, model: &ModelId) -> ModelSpec {
        self.models.get(model).map_or_else(|| ModelSpec::new(model.clone()), |placed| placed.spec.clone())
    }

    /// Whether an operator declared it.
    pub fn is_declared(&self, model: &ModelId) -> bool {
        self.models.contains_key(model)
    }

    /// Whether `model` is declared and `node` is one of its nodes.
    pub fn places(&self, model: &ModelId, node: &NodeId) -> bool {
        self.models.get(model).is_some_and(|placed| placed.allows(node))
    }

    /// Whether the declaration keeps `model` off `node`.
    pub fn forbids(&self, model: &ModelId, node: &NodeId) -> bool {
        self.models.get(model).is_some_and(|placed| !placed.allows(node))
    }
}

impl PlacedModel {
    fn allows(&self, node: &NodeId) -> bool {
        self.nodes.is_empty() || self.nodes.contains(node)
    }
}
