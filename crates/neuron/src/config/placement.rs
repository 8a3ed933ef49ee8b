//! `[placement]`: this host's part of a rendered placement, laid over the configuration.

use std::path::PathBuf;

use cortex_core::NodeId;
use cortex_placement::Placement;
use serde::Deserialize;

use super::{ConfigError, NeuronConfig, invalid};

/// Where the placement is, and who this host is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlacementConfig {
    /// What `cortex placement render` wrote. Its models join those of `[[models]]`, its preloads come after `preload`.
    pub file: Option<PathBuf>,
    /// This host's name in it. Absent: the hostname.
    pub node: Option<NodeId>,
}

impl NeuronConfig {
    /// Reads the placement, where there is one.
    pub(super) fn with_placement(self) -> Result<Self, ConfigError> {
        let Some(file) = self.placement.file.clone() else { return Ok(self) };
        let text = std::fs::read_to_string(&file).map_err(|source| ConfigError::Unreadable { file: file.clone(), source })?;
        let placement = Placement::from_json(&text);
        let placement = placement.map_err(|error| ConfigError::Malformed { file, message: error.to_string() })?;
        let hostname = || NodeId::from(crate::discovery::read("/proc/sys/kernel/hostname").trim());
        let node = self.placement.node.clone().unwrap_or_else(hostname);
        self.placed(&placement, &node)
    }

    /// Lays what `placement` says of `node` over the file's values.
    pub fn placed(mut self, placement: &Placement, node: &NodeId) -> Result<Self, ConfigError> {
        let Some(host) = placement.host(node) else {
            let known: Vec<&str> = placement.hosts.keys().map(NodeId::as_str).collect();
            return Err(invalid("placement.node", format!("is `{node}`, and the placement has {}: name one of them", known.join(", "))));
        };
        for model in &host.models {
            if self.model(&model.model_id).is_some() {
                let id = &model.model_id;
                return Err(invalid("models", format!("has `{id}`, which the placement declares, too: remove the [[models]] entry")));
            }
            self.models.push(model.clone());
        }
        let new: Vec<_> = host.preload.iter().filter(|id| !self.preload.contains(id)).cloned().collect();
        self.preload.extend(new);
        Ok(self)
    }
}
