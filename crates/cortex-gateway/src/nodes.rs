//! Acting on nodes: a typed client for each, and what an action's result means for the fleet.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use cortex_core::config::{NeuronEntry, Timeouts};
use cortex_core::openai::ApiError;
use cortex_core::{ModelId, ModelReport, ModelSpec, ModelStatus, NodeId, UnloadRequest};
use neuron_api::{Client, ClientError, ClientTimeouts};

use crate::fleet::{FleetCell, Observation};
use crate::metrics::Metrics;

/// How often an action is repeated with a newer generation when another gateway was faster.
const STALE_RETRIES: usize = 3;

/// The nodes of the configuration.
#[derive(Debug)]
pub(crate) struct Nodes {
    clients: HashMap<NodeId, Client>,
    fleet: Arc<FleetCell>,
    metrics: Arc<Metrics>,
}

impl Nodes {
    pub(crate) fn new(entries: &[NeuronEntry], timeouts: &Timeouts, fleet: Arc<FleetCell>, metrics: Arc<Metrics>) -> Self {
        let waits = ClientTimeouts {
            connect: timeouts.connect_ms_max.duration(),
            call: timeouts.poll_ms_max.duration(),
            action: timeouts.load_ms_max.duration(),
            idle: timeouts.idle_ms_max.duration(),
        };
        let clients = entries.iter().map(|entry| (entry.name.clone(), Client::new(entry.endpoint.as_str(), waits))).collect();
        Self { clients, fleet, metrics }
    }

    /// Everything that a node says about itself.
    pub(crate) async fn observe(&self, id: &NodeId) -> Result<Observation, ClientError> {
        let client = self.client(id)?;
        let actions_before = self.fleet.load().node(id).map_or(0, |node| node.actions);
        let (discovery, health, models) = tokio::try_join!(client.discovery(), client.health(), client.models())?;
        Ok(Observation { discovery, health, models, actions_before, at: Instant::now() })
    }

    /// Has `id` load `model` and answers when it serves.
    pub(crate) async fn load(&self, id: &NodeId, model: &ModelId) -> Result<ModelReport, ClientError> {
        let client = self.client(id)?;
        let spec = self.fleet.load().placement().spec(model);
        self.fleet.update(|fleet| fleet.model_standing(id, model, &ModelStatus::Loading { percent: 0 }));
        tracing::info!(%model, node = %id, "loading");
        let started = Instant::now();
        let send = |generation| {
            let (client, spec) = (client.clone(), ModelSpec { generation: Some(generation), ..spec.clone() });
            async move { client.load(&spec).await }
        };
        let outcome = self.newest(id, client, send).await;
        let seconds = started.elapsed().as_secs_f64();
        let labels = [model.as_str(), id.as_str()];
        match &outcome {
            Ok(report) => {
                self.fleet.update(|fleet| fleet.model_reported(id, report));
                self.metrics.model_load.with_label_values(&labels).observe(seconds);
                tracing::info!(%model, node = %id, seconds, "loaded");
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
    pub(crate) async fn unload(&self, id: &NodeId, model: &ModelId) -> Result<(), ClientError> {
        let client = self.client(id)?;
        self.fleet.update(|fleet| fleet.model_standing(id, model, &ModelStatus::Unloading));
        let send = |generation| {
            let (client, request) = (client.clone(), UnloadRequest { model_id: model.clone(), generation: Some(generation) });
            async move { client.unload(&request).await }
        };
        let outcome = self.newest(id, client, send).await;
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

    /// Sends an action with a generation newer than any that the node has reported, again while another gateway is faster.
    async fn newest<T, F>(&self, id: &NodeId, client: &Client, send: impl Fn(u64) -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let mut generation = self.fleet.load().node(id).map_or(1, |node| newer_than(node.models.values()));
        for _ in 0..STALE_RETRIES {
            match send(generation).await {
                Err(ClientError::Status(error)) if is_stale(&error) => {
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

    fn client(&self, id: &NodeId) -> Result<&Client, ClientError> {
        self.clients.get(id).ok_or_else(|| ClientError::Status(unknown_node(id)))
    }
}

/// A 404 for a node that the configuration does not name.
pub(crate) fn unknown_node(id: &NodeId) -> ApiError {
    let message = format!("No node is named `{id}`. GET /admin/fleet lists the nodes.");
    ApiError::new(404, "invalid_request_error", Some("node_not_found"), message).with_param("node")
}

fn newer_than<'a>(models: impl IntoIterator<Item = &'a ModelReport>) -> u64 {
    models.into_iter().map(|report| report.generation).max().unwrap_or(0) + 1
}

fn is_stale(error: &ApiError) -> bool {
    error.status == 409 && error.body.error.code.as_deref() == Some("stale_generation")
}
