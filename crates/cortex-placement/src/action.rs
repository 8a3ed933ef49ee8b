//! What is to be done on a node.

use std::fmt;

use cortex_core::{ModelId, NodeId};
use serde::{Deserialize, Serialize};

/// One step towards what is desired. Carrying it out twice does no harm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// What.
    #[serde(flatten)]
    pub step: Step,
    /// Where.
    pub node: NodeId,
    /// Which devices of the node it concerns.
    pub devices: Vec<usize>,
    /// Newer than any that the node has seen; the node refuses an older one.
    pub generation: u64,
    /// Why, in words.
    pub reason: String,
}

/// The kinds of action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// Load it on exactly [`Action::devices`]. If it is there and drains, give it requests again instead.
    Load {
        /// The model.
        model: ModelId,
    },
    /// Send it no further requests; those in flight end.
    Drain {
        /// The model.
        model: ModelId,
    },
    /// Unload it. Nothing is in flight.
    Unload {
        /// The model.
        model: ModelId,
    },
    /// Send the node nothing new, unload everything once nothing is in flight, count its cycles from 0, and take it back.
    Defrag,
}

impl Action {
    /// The model, where it concerns one.
    pub fn model(&self) -> Option<&ModelId> {
        match &self.step {
            Step::Load { model } | Step::Drain { model } | Step::Unload { model } => Some(model),
            Step::Defrag => None,
        }
    }
}

/// `load qwen3-8b on beast:0,1`
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let devices: Vec<String> = self.devices.iter().map(ToString::to_string).collect();
        let place = format!("{}:{}", self.node, devices.join(","));
        match &self.step {
            Step::Load { model } => write!(f, "load {model} on {place}"),
            Step::Drain { model } => write!(f, "drain {model} on {place}"),
            Step::Unload { model } => write!(f, "unload {model} from {place}"),
            Step::Defrag => write!(f, "rebuild the memory of {}", self.node),
        }
    }
}
