//! Another configuration while requests are under way: what changes at once, and what waits for the next start.

use std::collections::BTreeSet;
use std::sync::Arc;

use cortex_core::NodeId;
use cortex_core::config::GatewayConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::App;
use crate::setup::Setup;

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Nodes that are new, or at another address.
    pub nodes_added: Vec<NodeId>,
    /// Nodes that get nothing new.
    pub nodes_removed: Vec<NodeId>,
    /// Sections that changed and take effect at the next start only.
    pub after_restart: Vec<&'static str>,
}

/// Swaps the configuration and begins to watch nodes that are new. A node that is gone ends what it has and gets nothing new.
pub(crate) fn reload(app: &Arc<App>, setup: Setup, background: &TaskTracker, kill: &CancellationToken) -> Reloaded {
    let before = app.live.load_full();
    let nodes = |config: &GatewayConfig| -> BTreeSet<(NodeId, String)> {
        config.neurons.iter().map(|entry| (entry.name.clone(), entry.endpoint.to_string())).collect()
    };
    let (old, new) = (nodes(&before.config), nodes(&setup.config));
    let only = |these: &BTreeSet<_>, those: &BTreeSet<_>| -> Vec<NodeId> {
        these.difference(those).map(|(name, _): &(NodeId, String)| name.clone()).collect()
    };
    let reloaded = Reloaded {
        nodes_added: only(&new, &old),
        nodes_removed: only(&old, &new),
        after_restart: after_restart(&app.config, &setup.config),
    };
    app.reconfigure(setup);
    let poller = app.poller();
    for node in reloaded.nodes_added.clone() {
        let poller = Arc::clone(&poller);
        let watching = async move {
            poller.poll(&node).await;
            poller.watch(node).await;
        };
        background.spawn(kill.clone().run_until_cancelled_owned(watching));
    }
    reloaded
}

/// Sections that are read at the start only.
fn after_restart(started: &GatewayConfig, config: &GatewayConfig) -> Vec<&'static str> {
    let section = |config: &GatewayConfig| {
        let mut section = config.gateway.clone();
        section.cors_origins = Vec::new();
        section.placement_file = None;
        section.ca = None;
        section
    };
    let changed = [
        ("gateway", section(started) != section(config)),
        ("limits", started.limits != config.limits),
        ("timeouts", started.timeouts != config.timeouts),
        ("telemetry", started.telemetry != config.telemetry),
    ];
    changed.into_iter().filter(|(_, changed)| *changed).map(|(name, _)| name).collect()
}
