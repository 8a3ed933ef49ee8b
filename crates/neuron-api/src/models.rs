//! Models of the node: what there is, loading and unloading, and the lists clients read.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::header::HOST;
use axum::http::{HeaderMap, Method, Uri};
use cortex_core::openai::fields::missing;
use cortex_core::openai::{ApiError, ModelEntry, ModelList};
use cortex_core::{HarnessError, ModelId, ModelReport, ModelSpec, ModelStatus, UnloadRequest};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Api;
use crate::call::JsonFields;
use crate::error::{Failure, no_such_route};

/// The answer of `GET /models`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelsAnswer {
    /// Every model this node can serve, loaded or not.
    pub models: Vec<ModelReport>,
}

/// The answer of `POST /models/unload`, sent when the memory is back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnloadAnswer {
    /// The model that is gone.
    pub model_id: ModelId,
    /// Always true.
    pub unloaded: bool,
}

/// The answer of `GET /models/{id}/endpoint`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointAnswer {
    /// The model.
    pub model_id: ModelId,
    /// Where an OpenAI client sends its requests.
    pub endpoint: String,
}

pub(crate) async fn reports(State(api): State<Api>) -> Json<ModelsAnswer> {
    Json(ModelsAnswer { models: api.harness.models() })
}

/// Runs on its own task: a caller who leaves does not leave a model half loaded.
pub(crate) async fn load(State(api): State<Api>, JsonFields(fields): JsonFields) -> Result<Json<ModelReport>, Failure> {
    let spec: ModelSpec = parse(&fields.into_map())?;
    let report = finished(tokio::spawn(async move { api.harness.load(spec).await }).await)?;
    Ok(Json(report))
}

/// Runs on its own task, like [`load`].
pub(crate) async fn unload(State(api): State<Api>, JsonFields(fields): JsonFields) -> Result<Json<UnloadAnswer>, Failure> {
    let request: UnloadRequest = parse(&fields.into_map())?;
    let model_id = request.model_id.clone();
    finished(tokio::spawn(async move { api.harness.unload(request).await }).await)?;
    Ok(Json(UnloadAnswer { model_id, unloaded: true }))
}

fn finished<T>(joined: Result<Result<T, HarnessError>, tokio::task::JoinError>) -> Result<T, HarnessError> {
    joined.unwrap_or_else(|error| Err(HarnessError::Internal(format!("the action did not end well: {error}"))))
}

/// Only `{id}/endpoint` is behind the wildcard. The host is the one that the caller used, for it surely reaches us.
pub(crate) async fn endpoint(
    State(api): State<Api>,
    Path(path): Path<String>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Json<EndpointAnswer>, Failure> {
    let Some(id) = path.strip_suffix("/endpoint") else {
        return Err(no_such_route(Method::GET, uri).await);
    };
    let report = find(&api, id)?;
    if !report.is_loaded() {
        return Err(HarnessError::ModelNotLoaded(report.id).into());
    }
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    Ok(Json(EndpointAnswer { model_id: report.id, endpoint: format!("http://{host}/v1") }))
}

pub(crate) async fn list(State(api): State<Api>) -> Json<ModelList> {
    Json(ModelList::new(api.harness.models().into_iter().map(|report| model_entry(&api, report)).collect()))
}

pub(crate) async fn entry(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<ModelEntry>, Failure> {
    let report = find(&api, &id)?;
    Ok(Json(model_entry(&api, report)))
}

fn find(api: &Api, id: &str) -> Result<ModelReport, ApiError> {
    api.harness.models().into_iter().find(|report| report.id.as_str() == id).ok_or_else(|| ApiError::model_not_found(id))
}

fn model_entry(api: &Api, report: ModelReport) -> ModelEntry {
    let state = match report.status {
        ModelStatus::Loaded => "loaded",
        ModelStatus::Loading { .. } => "loading",
        ModelStatus::Available | ModelStatus::Unloading | ModelStatus::Failed { .. } => "available",
    };
    ModelEntry {
        id: report.id.to_string(),
        object: "model".into(),
        created: api.started,
        owned_by: "neuron".into(),
        state: state.into(),
        nodes: vec![api.harness.discovery().hostname],
        context_length: report.context,
        capabilities: report.capabilities,
    }
}

/// Reads a body whose fields are all known; an error names the one at fault.
fn parse<T: DeserializeOwned>(fields: &Map<String, Value>) -> Result<T, ApiError> {
    if fields.get("model_id").is_none_or(Value::is_null) {
        return Err(missing("model_id"));
    }
    serde_json::from_value(Value::Object(fields.clone())).map_err(|error| {
        match fault(fields, |alone| serde_json::from_value::<T>(alone).is_ok()) {
            Some(param) => ApiError::invalid(format!("`{param}`: {error}.")).with_param(param),
            None => ApiError::invalid(format!("{error}.")),
        }
    })
}

/// The first field that is refused when it comes alone beside a model id: serde says what is wrong, but not where.
fn fault(fields: &Map<String, Value>, accepts: impl Fn(Value) -> bool) -> Option<String> {
    let alone = |name: &str, value: &Value| {
        let mut body = Map::from_iter([("model_id".to_owned(), Value::String("any".into()))]);
        body.insert(name.to_owned(), value.clone());
        Value::Object(body)
    };
    fields.iter().find(|(name, value)| !accepts(alone(name, value))).map(|(name, _)| name.clone())
}
