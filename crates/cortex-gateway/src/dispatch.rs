//! The one sequence that every inference request takes: route, have the model loaded, send, observe.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use cortex_core::openai::ApiError;
use cortex_core::{ModelId, ModelStatus, NodeId};
use http::StatusCode;
use http::header::RETRY_AFTER;
use tokio::time::{Instant, timeout, timeout_at};

use crate::app::App;
use crate::call::{Call, Endpoint};
use crate::error::Refusal;
use crate::fleet::Node;
use crate::keep_alive;
use crate::middleware::auth::Asker;
use crate::middleware::request_log::RequestId;
use crate::proxy::{Answer, AttemptError, Observer};
use crate::queue::{Full, Place};
use crate::routing::{Route, RouteError, RouteRequest, Target, route};

/// How often one request waits for a load: once, and again where its model had to make room before the request got there.
const LOADS_MAX: usize = 16;

/// Answers `request`, whatever happens.
pub(crate) async fn dispatch(app: Arc<App>, endpoint: Endpoint, request: Request) -> Response {
    dispatch_translated(app, endpoint, request, Ok).await
}

/// The same for a body that only `translate` makes readable to a node. The answer is a node's: its way back is the caller's.
pub(crate) async fn dispatch_translated(
    app: Arc<App>,
    endpoint: Endpoint,
    request: Request,
    translate: impl FnOnce(Bytes) -> Result<Bytes, ApiError>,
) -> Response {
    let request_id = RequestId::of(&request);
    let mut observer = Observer::new(Arc::clone(&app.metrics), endpoint.path(), request_id.clone());
    observer.traced(app.telemetry.as_ref().map(|telemetry| telemetry.open(request.headers())));
    if let Some(asker) = Asker::of(&request) {
        match asker.open() {
            Ok(open) => observer.asker(open),
            Err(denied) => {
                app.metrics.auth_failures.with_label_values(&[denied.as_str()]).inc();
                let error = ApiError::from(denied);
                observer.refuses(error.status);
                return Refusal(error).into_response();
            }
        }
    }
    let mut call = match Call::read(&app, endpoint, request, &request_id, translate).await {
        Ok(call) => call,
        Err(error) => {
            observer.refuses(error.status);
            return Refusal(error).into_response();
        }
    };
    observer.pass_trace_on(&mut call.headers);
    if call.stream {
        let interval = app.config.timeouts.keep_alive_ms.duration();
        return keep_alive::while_waiting(interval, answer(app, call, observer)).await;
    }
    answer(app, call, observer).await
}

/// The model that was asked for, or where it cannot answer, the first of its fallbacks that can.
async fn answer(app: Arc<App>, call: Call, mut observer: Observer) -> Response {
    app.retry_budget.deposit();
    let outcome = match attempts(&app, &call, &mut observer).await {
        Err(failed) if failed.status().is_server_error() || failed.status() == StatusCode::TOO_MANY_REQUESTS => {
            fall_back(&app, &call, &mut observer).await.ok_or(failed)
        }
        outcome => outcome,
    };
    match outcome {
        Ok(answer) => app.proxy.respond(answer, observer),
        Err(response) => {
            observer.refuses(response.status().as_u16());
            *response
        }
    }
}

async fn fall_back(app: &App, call: &Call, observer: &mut Observer) -> Option<Answer> {
    let fallbacks = app.fleet.load().placement().fallbacks(&call.model).to_vec();
    let allowed = |model: &ModelId| call.asker.as_ref().is_none_or(|asker| asker.may_use(model, model.as_str()).is_ok());
    for fallback in fallbacks.into_iter().filter(allowed) {
        if let Ok(answer) = attempts(app, &call.asking(&fallback), observer).await {
            app.metrics.fallbacks.with_label_values(&[call.model.as_str(), fallback.as_str()]).inc();
            return Some(answer);
        }
    }
    None
}

async fn attempts(app: &App, call: &Call, observer: &mut Observer) -> Result<Answer, Box<Response>> {
    let late = || {
        let message = format!("the answer had not begun after {:?} (total_ms_max)", app.config.timeouts.total_ms_max.duration());
        Err(boxed(ApiError::new(504, "server_error", Some("request_timeout"), message)))
    };
    timeout_at(call.deadline, Attempts::new(app, call).run(observer)).await.unwrap_or_else(|_| late())
}

/// A request that kills what serves it may kill no more nodes than this.
const DEADLY_MAX: usize = 2;
/// A request that waits for a place looks again this often even if no place is known to be free: other gateways have requests, too.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// One request's way through the fleet. Nothing has been shown to the client until it ends.
struct Attempts<'a> {
    app: &'a App,
    call: &'a Call,
    tried: Vec<NodeId>,
    last: Option<(NodeId, AttemptError)>,
    replayed: bool,
    deadly: usize,
    /// Nodes without a free place, each with how many of its requests had ended when it was asked.
    busy: Vec<(Arc<Node>, u64)>,
    /// The retry budget allows no further node.
    settled: bool,
    /// When the first of the busy nodes said to come back.
    retry_after_s: Option<u64>,
    place: Option<Place>,
    queue_until: Instant,
}

impl<'a> Attempts<'a> {
    fn new(app: &'a App, call: &'a Call) -> Self {
        Self {
            app,
            call,
            tried: Vec::new(),
            last: None,
            replayed: false,
            deadly: 0,
            busy: Vec::new(),
            settled: false,
            retry_after_s: None,
            place: None,
            queue_until: Instant::now() + app.config.timeouts.queue_ms_max.duration(),
        }
    }

    async fn run(mut self, observer: &mut Observer) -> Result<Answer, Box<Response>> {
        if self.app.fleet.load().replicas(self.call.model.as_str()).len() > 0 {
            observer.model(&self.call.model);
        }
        let (mut sends, mut loads) = (0, 0);
        while sends < self.app.config.limits.tries_max.get() && loads <= LOADS_MAX {
            let route = if self.settled { Err(RouteError::Exhausted(self.call.model.to_string())) } else { self.route() };
            // A model that is merely busy is not loaded a second time by whoever comes first; that is for the reconciler to decide.
            if !self.busy.is_empty() && !matches!(route, Ok(Route::Serve(_))) {
                self.wait_for_place().await.map_err(|error| self.refusal(error))?;
                sends = 0;
                continue;
            }
            match route {
                Ok(Route::Serve(target)) => {
                    sends += 1;
                    observer.tries(&target.node.id);
                    let ended = target.node.load.ended();
                    match self.app.proxy.attempt(&target, self.call).await {
                        Ok(answer) => {
                            target.node.serves();
                            return Ok(answer);
                        }
                        Err(error) => self.learn(&target, ended, error, observer)?,
                    }
                }
                Ok(Route::ColdLoad) => {
                    loads += 1;
                    observer.waits_for_load();
                    self.app.lifecycle.ensure_loaded(&self.call.model).await.map_err(boxed)?;
                }
                Err(RouteError::Exhausted(_)) if self.may_replay() => {}
                Err(error) => return Err(self.refusal(self.app.explained(error))),
            }
        }
        let model = self.call.model.to_string();
        Err(self.refusal(RouteError::Exhausted(model).into()))
    }

    fn route(&self) -> Result<Route, RouteError> {
        let Call { model, affinity, .. } = self.call;
        let request = RouteRequest { model: model.as_str(), tried: &self.tried, affinity: *affinity, turn: self.app.next_turn() };
        route(&self.app.fleet.load(), &request)
    }

    /// What a failed attempt says about the node and about where to go next.
    fn learn(&mut self, target: &Target, ended: u64, error: AttemptError, observer: &mut Observer) -> Result<(), Box<Response>> {
        let (fleet, node) = (&self.app.fleet, &target.node.id);
        if matches!(error, AttemptError::Refused(_)) {
            return Err(Box::new(error.into_response(node.as_str())));
        }
        observer.gave_up(error.as_str());
        match &error {
            AttemptError::Unreachable { reason } => fleet.eject(node, reason),
            AttemptError::NotLoaded(_) => {
                fleet.update(|fleet| fleet.model_standing(node, &self.call.model, &ModelStatus::Available));
                fleet.poll_soon(node);
            }
            AttemptError::Draining(_) => {
                fleet.update(|fleet| fleet.draining(node));
                fleet.poll_soon(node);
            }
            AttemptError::Busy(_) => {
                self.retry_after_s = self.retry_after_s.into_iter().chain(error.retry_after_s()).min();
                self.busy.push((Arc::clone(&target.node), ended));
            }
            AttemptError::Reset { .. } | AttemptError::TimedOut { .. } => fleet.poll_soon(node),
            _ => {}
        }
        if error.blames_node() && target.node.fails() >= self.app.config.limits.node_failures_max.get() {
            let reason = format!("its requests fail ({})", error.as_str());
            fleet.update(|fleet| fleet.failing(node, &reason, crate::clock::now()));
            fleet.poll_soon(node);
        }
        // A whole answer sends no heartbeats: a long one may well have been on its way, and a second node would take as long.
        let hopeless = matches!(error, AttemptError::TimedOut { .. }) && !self.call.stream;
        self.deadly += usize::from(error.may_be_deadly());
        if hopeless || self.deadly >= DEADLY_MAX {
            return Err(Box::new(error.into_response(node.as_str())));
        }
        if !error.is_free() && !self.app.retry_budget.withdraw(crate::clock::now()) {
            self.app.metrics.retries_refused.inc();
            self.settled = true;
        }
        // A node that only lacks the model is still the right one once it has it.
        if !matches!(error, AttemptError::NotLoaded(_)) {
            self.tried.push(node.clone());
        }
        self.last = Some((node.clone(), error));
        Ok(())
    }

    /// Waits in the model's line until one of the busy nodes may have a place. The place in the line is kept until the answer begins.
    async fn wait_for_place(&mut self) -> Result<(), ApiError> {
        let place = match self.place.take() {
            Some(place) => place,
            None => self.app.queues.stand(&self.call.model, self.call.priority).map_err(|full| self.line_is_full(full))?,
        };
        let free = async {
            loop {
                place.is_first().await;
                let ended = self.busy.iter().map(|(node, ended)| Box::pin(node.load.ended_since(*ended)));
                let _ = timeout(LOOK_AGAIN, futures::future::select_all(ended)).await;
                if place.leads() {
                    break; // nobody more urgent came meanwhile
                }
            }
        };
        timeout_at(self.queue_until, free).await.map_err(|_| RouteError::Exhausted(self.call.model.to_string()))?;
        let busy = std::mem::take(&mut self.busy);
        self.tried.retain(|node| !busy.iter().any(|(busy, _)| busy.id == *node));
        (self.settled, self.place) = (false, Some(place));
        Ok(())
    }

    fn line_is_full(&self, Full { len_max }: Full) -> ApiError {
        let message =
            format!("every replica of `{}` is full and {len_max} requests wait for a place already (queue_len_max)", self.call.model);
        let error = ApiError::new(429, "rate_limit_error", Some("queue_full"), message);
        error.with_retry_after(self.retry_after_s.unwrap_or(1))
    }

    /// A pooled connection may have died of age: where there is no other node, the same one gets the request once more.
    fn may_replay(&mut self) -> bool {
        let reset = matches!(&self.last, Some((_, AttemptError::Reset { .. })));
        if reset && !self.replayed {
            self.replayed = true;
            self.tried.pop();
            return true;
        }
        false
    }

    /// The last node's own words tell more than ours; when to come back is the earliest that any node named.
    fn refusal(&mut self, error: ApiError) -> Box<Response> {
        let Some((node, last)) = self.last.take().filter(|_| error.status != 429) else { return boxed(error) };
        let mut response = last.into_response(node.as_str());
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        Box::new(response)
    }
}

fn boxed(error: impl Into<Refusal>) -> Box<Response> {
    Box::new(error.into().into_response())
}
