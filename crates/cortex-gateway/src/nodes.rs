//! Acting on nodes: a typed client for each, and what an action's result means for the fleet.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use cortex_core::config::{GatewayConfig, NeuronEntry};
use cortex_core::openai::ApiError;
use cortex_core::{ModelId, ModelReport, ModelSpec, ModelStatus, NodeId, UnloadRequest};
use cortex_net::Dialer;
use neuron_api::{Client, ClientError, ClientTimeouts};

use crate::clock;
use crate::fleet::{FleetCell, Observation};
use crate::metrics::Metrics;

/// How often an action is repeated with a newer generation when another gateway was faster.
const STALE_RETRIES: usize = 3;

/// What an action says beside the model.
#[derive(Clone, Debug, Default)]
pub(crate) struct Order {
    /// The devices to use; empty: the node's choice.
    pub(crate) devices: Vec<usize>,
    /// From the decision that the action belongs to; a node that has seen a newer one refuses it. Absent: newer than any.
    pub(crate) generation: Option<u64>,
}

/// The nodes of the configuration.
#[derive(Debug)]
pub(crate) struct Nodes {
    clients: ArcSwap<HashMap<NodeId, Client>>,
    dialer: Dialer,
    fleet: Arc<FleetCell>,
    metrics: Arc<Metrics>,
}

impl Nodes {
    pub(crate) fn new(config: &GatewayConfig, dialer: Dialer, fleet: Arc<FleetCell>, metrics: Arc<Metrics>) -> Self {
        Self { clients: ArcSwap::from_pointee(clients(config, &dialer)), dialer, fleet, metrics }
    }

    /// The nodes of another configuration. Calls under way go on.
    pub(crate) fn reconfigure(&self, config: &GatewayConfig) {
        self.clients.store(Arc::new(clients(config, &self.dialer)));
    }

    /// Everything that a node says about itself.
    pub(crate) async fn observe(&self, id: &NodeId) -> Result<Observation, ClientError> {
        let client = self.client(id)?;
        let actions_before = self.fleet.load().node(id).map_or(0, |node| node.actions);
        let (discovery, health, models) = tokio::try_join!(client.discovery(), client.health(), client.models())?;
        Ok(Observation { discovery, health, models, actions_before, at: clock::now() })
    }

    /// Has the fleet know that `id` is about to load `model`.
    pub(crate) fn begin_load(&self, id: &NodeId, model: &ModelId, order: &Order) {
        self.fleet.update(|fleet| fleet.model_loading(id, model, &order.devices));
    }

    /// Has the fleet know that `id` is about to unload `model`.
    pub(crate) fn begin_unload(&self, id: &NodeId, model: &ModelId) {
        self.fleet.update(|fleet| fleet.model_standing(id, model, &ModelStatus::Unloading));
    }

    /// Has `id` load `model` and answers when it serves.
    pub(crate) async fn load(&self, id: &NodeId, model: &ModelId, order: &Order) -> Result<ModelReport, ClientError> {
        let client = self.client(id)?;
        self.begin_load(id, model, order);
        let spec = self.spec(id, model, &order.devices);
        tracing::info!(%model, node = %id, "loading");
        let started = clock::now();
        let send = |generation| {
            let (client, spec) = (client.clone(), ModelSpec { generation: Some(generation), ..spec.clone() });
            async move { client.load(&spec).await }
        };
        let outcome = self.send(id, &client, order, send).await;
        let seconds = (clock::now() - started).as_secs_f64();
        let labels = [model.as_str(), id.as_str()];
        match &outcome {
            Ok(report) => {
                self.fleet.update(|fleet| fleet.model_reported(id, report));
                self.metrics.model_load.with_label_values(&labels).observe(seconds);
                tracing::info!(%model, node = %id, seconds, "loaded");
            }
            Err(error) if is_stale(error) => {
                self.fleet.update(|fleet| fleet.model_standing(id, model, &ModelStatus::Available));
                self.fleet.poll_soon(id);
                tracing::info!(%model, node = %id, %error, "another gateway was faster");
                return outcome;
            }
            Err(error) => {
                self.fleet.update(|fleet| fleet.model_standing(id, model, &ModelStatus::Failed { reason: error.to_string() }));
                self.doubt(id, error);
                tracing::warn!(%model, node = %id, seconds, %error, "cannot load");
            }
        }
        let word = if outcome.is_ok() { "ok" } else { "failed" };
        self.metrics.model_loads.with_label_values(&[labels[0], labels[1], word]).inc();
        outcome
    }

    /// Has `id` drain and unload `model` and answers when the memory is back.
    pub(crate) async fn unload(&self, id: &NodeId, model: &ModelId, order: &Order) -> Result<(), ClientError> {
        let client = self.client(id)?;
        self.begin_unload(id, model);
        let send = |generation| {
            let (client, request) = (client.clone(), UnloadRequest { model_id: model.clone(), generation: Some(generation) });
            async move { client.unload(&request).await }
        };
        let outcome = self.send(id, &client, order, send).await;
        let word = if outcome.is_ok() { "ok" } else { "failed" };
        self.metrics.model_unloads.with_label_values(&[model.as_str(), id.as_str(), word]).inc();
        match &outcome {
            Ok(()) => {
                self.fleet.update(|fleet| fleet.model_standing(id, model, &ModelStatus::Available));
                tracing::info!(%model, node = %id, "unloaded");
            }
            Err(error) => {
                self.doubt(id, error);
                tracing::warn!(%model, node = %id, %error, "cannot unload");
            }
        }
        self.fleet.poll_soon(id);
        outcome
    }

    /// How `id` is to load `model`.
    fn spec(&self, id: &NodeId, model: &ModelId, devices: &[usize]) -> ModelSpec {
        let fleet = self.fleet.load();
        let spec = fleet.placement().spec(model);
        let several = fleet.node(id).and_then(|node| node.facts.as_ref()).is_some_and(|facts| facts.discovery.devices.len() > 1);
        let chosen = (several && !devices.is_empty()).then(|| devices.to_vec());
        ModelSpec { devices: chosen.or(spec.devices), ..spec }
    }

    /// Sends an action with the generation of its decision, once, or with the newest.
    async fn send<T, F>(&self, id: &NodeId, client: &Client, order: &Order, send: impl Fn(u64) -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        match order.generation {
            Some(generation) => send(generation).await,
            None => self.newest(id, client, send).await,
        }
    }

    /// Sends an action with a generation newer than any that the node has reported, again while another gateway is faster.
    async fn newest<T, F>(&self, id: &NodeId, client: &Client, send: impl Fn(u64) -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let mut generation = self.fleet.load().node(id).map_or(1, |node| newer_than(node.models.values()));
        for _ in 0..STALE_RETRIES {
            match send(generation).await {
                Err(error) if is_stale(&error) => {
                    generation = newer_than(&client.models().await?).max(generation + 1);
                }
                outcome => return outcome,
            }
        }
        send(generation).await
    }

    /// A node that cannot be reached is out at once; the poller finds out about any other trouble.
    fn doubt(&self, id: &NodeId, error: &ClientError) {
        match error {
            ClientError::Unreachable { reason, .. } => self.fleet.eject(id, reason),
            ClientError::Status(_) | ClientError::Protocol { .. } => self.fleet.poll_soon(id),
        }
    }

    fn client(&self, id: &NodeId) -> Result<Client, ClientError> {
        self.clients.load().get(id).cloned().ok_or_else(|| ClientError::Status(unknown_node(id)))
    }
}

fn clients(config: &GatewayConfig, dialer: &Dialer) -> HashMap<NodeId, Client> {
    let (timeouts, token) = (&config.timeouts, &config.gateway.node_token);
    let waits = ClientTimeouts {
        connect: timeouts.connect_ms_max.duration(),
        call: timeouts.poll_ms_max.duration(),
        action: timeouts.load_ms_max.duration(),
        idle: timeouts.idle_ms_max.duration(),
    };
    let client = |entry: &NeuronEntry| {
        let client = Client::over(entry.endpoint.as_str(), waits, dialer.clone());
        if token.is_empty() { client } else { client.with_bearer(token) }
    };
    config.neurons.iter().map(|entry| (entry.name.clone(), client(entry))).collect()
}

/// A 404 for a node that the configuration does not name.
pub(crate) fn unknown_node(id: &NodeId) -> ApiError {
    let message = format!("No node is named `{id}`. GET /admin/fleet lists the nodes.");
    ApiError::new(404, "invalid_request_error", Some("node_not_found"), message).with_param("node")
}

fn newer_than<'a>(models: impl IntoIterator<Item = &'a ModelReport>) -> u64 {
    models.into_iter().map(|report| report.generation).max().unwrap_or(0) + 1
}

/// The node has seen a newer action than this one.
pub(crate) fn is_stale(error: &ClientError) -> bool {
    matches!(error, ClientError::Status(error) if error.status == 409 && error.body.error.code.as_deref() == Some("stale_generation"))
}
