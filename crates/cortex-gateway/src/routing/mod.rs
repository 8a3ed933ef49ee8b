//! Where a request goes: a pure function over the fleet's snapshot.

mod choice;
mod score;

use std::sync::Arc;

use cortex_core::NodeId;
use cortex_core::openai::ApiError;

use crate::fleet::{Fleet, Hold, Load, LoadGuard, Node, Reach, Standing};
use choice::choose;

/// What the decision depends on, beside the fleet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RouteRequest<'a> {
    pub(crate) model: &'a str,
    /// Nodes that failed this request already.
    pub(crate) tried: &'a [NodeId],
    /// Requests with the same key share a prefix.
    pub(crate) affinity: Option<u64>,
    /// Grows by one with each request: replicas that are equally good take turns.
    pub(crate) turn: usize,
}

/// The decision.
#[derive(Clone, Debug)]
pub(crate) enum Route {
    /// Send it there now.
    Serve(Target),
    /// No ready node has it in memory, but one could load it.
    ColdLoad,
}

/// A loaded replica.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) node: Arc<Node>,
    load: Arc<Load>,
}

impl Target {
    /// Counts one more open request there, of about so many tokens.
    pub(crate) fn occupy(&self, tokens: u64) -> LoadGuard {
        LoadGuard::take(&self.node.load, &self.load, tokens)
    }
}

/// Why there is no route.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("the model `{0}` is not known to any node")]
    UnknownModel(String),
    #[error("no node can serve `{model}` now: {why}")]
    Unreachable { model: String, why: String },
    #[error("every node that could serve `{0}` failed this request")]
    Exhausted(String),
}

impl From<RouteError> for ApiError {
    fn from(error: RouteError) -> Self {
        match &error {
            RouteError::UnknownModel(model) => Self::model_not_found(model),
            RouteError::Unreachable { .. } => {
                Self::new(503, "server_error", Some("no_node_available"), error.to_string()).with_retry_after(1)
            }
            RouteError::Exhausted(_) => Self::new(502, "server_error", Some("upstream_failed"), error.to_string()).with_retry_after(1),
        }
    }
}

/// A ready replica with the least open work, or one nearly as free that knows the prefix; or else a node that can load the model;
/// or else, because a node that was ejected may be back, any replica that was not tried.
pub(crate) fn route(fleet: &Fleet, request: &RouteRequest<'_>) -> Result<Route, RouteError> {
    if fleet.replicas(request.model).len() == 0 {
        return Err(unknown(fleet, request.model));
    }
    loaded(fleet, request, |reach| *reach == Reach::Ready)
        .or_else(|| can_be_loaded(fleet, request.model).then_some(Route::ColdLoad))
        .or_else(|| loaded(fleet, request, |reach| matches!(reach, Reach::Ejected { .. } | Reach::Unknown)))
        .ok_or_else(|| no_route(fleet, request))
}

/// The best loaded replica among nodes within `reach` that were not tried.
fn loaded(fleet: &Fleet, request: &RouteRequest<'_>, reach: fn(&Reach) -> bool) -> Option<Route> {
    let replicas = fleet.replicas_of(request.model);
    let (node, replica) = replicas.at(choose(replicas, request, reach)?);
    Some(Route::Serve(Target { node: Arc::clone(node), load: Arc::clone(&replica.load) }))
}

/// Whether a ready node has the model in memory.
pub(crate) fn is_loaded(fleet: &Fleet, model: &str) -> bool {
    fleet.replicas(model).any(|(node, replica)| replica.standing == Standing::Loaded && node.reach == Reach::Ready)
}

/// Whether no ready node has the model in memory, and one could. A node whose memory is being rebuilt will soon.
fn can_be_loaded(fleet: &Fleet, model: &str) -> bool {
    let could = |node: &Node| node.reach == Reach::Ready || node.hold == Some(Hold::Defrag);
    !is_loaded(fleet, model) && fleet.replicas(model).any(|(node, _)| could(node))
}

/// A node that was not heard of yet may have it; the client should come back rather than give up.
fn unknown(fleet: &Fleet, model: &str) -> RouteError {
    match fleet.nodes().iter().find(|node| node.reach == Reach::Unknown) {
        Some(node) => RouteError::Unreachable { model: model.into(), why: format!("{} {}", node.id, state_words(&node.reach)) },
        None => RouteError::UnknownModel(model.into()),
    }
}

fn no_route(fleet: &Fleet, request: &RouteRequest<'_>) -> RouteError {
    if !request.tried.is_empty() {
        return RouteError::Exhausted(request.model.into());
    }
    let why: Vec<String> = fleet.replicas(request.model).map(|(node, _)| format!("{} {}", node.id, state_words(&node.reach))).collect();
    RouteError::Unreachable { model: request.model.into(), why: why.join(", ") }
}

pub(crate) fn state_words(reach: &Reach) -> String {
    match reach {
        Reach::Unknown => "has not answered yet".into(),
        Reach::Ready => "is busy with it".into(),
        Reach::Draining => "is draining".into(),
        Reach::Ejected { reason, .. } => format!("is ejected ({reason})"),
    }
}

#[cfg(test)]
mod tests;
