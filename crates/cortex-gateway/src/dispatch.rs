//! The one sequence that every inference request takes: route, have the model loaded, send, observe.

use std::sync::Arc;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use cortex_core::openai::ApiError;
use cortex_core::{ModelStatus, NodeId};

use crate::app::App;
use crate::call::{Call, Endpoint};
use crate::error::Refusal;
use crate::keep_alive;
use crate::middleware::request_log::RequestId;
use crate::proxy::{Answer, AttemptError, Observer};
use crate::routing::{Route, RouteError, RouteRequest, Target, route};

/// How often one request waits for a load: once, and once more if the model was unloaded meanwhile.
const LOADS_MAX: usize = 2;

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
    let call = match Call::read(&app, endpoint, request, &request_id, translate).await {
        Ok(call) => call,
        Err(error) => {
            observer.refuses(error.status);
            return Refusal(error).into_response();
        }
    };
    if call.stream {
        let interval = app.config.timeouts.keep_alive_ms.duration();
        return keep_alive::while_waiting(interval, answer(app, call, observer)).await;
    }
    answer(app, call, observer).await
}

async fn answer(app: Arc<App>, call: Call, mut observer: Observer) -> Response {
    match (Attempts { app: &app, call: &call, tried: Vec::new(), last: None, replayed: false }).run(&mut observer).await {
        Ok(answer) => app.proxy.respond(answer, observer),
        Err(response) => {
            observer.refuses(response.status().as_u16());
            *response
        }
    }
}

/// One request's way through the fleet. Nothing has been shown to the client until it ends.
struct Attempts<'a> {
    app: &'a App,
    call: &'a Call,
    tried: Vec<NodeId>,
    last: Option<(NodeId, AttemptError)>,
    replayed: bool,
}

impl Attempts<'_> {
    async fn run(mut self, observer: &mut Observer) -> Result<Answer, Box<Response>> {
        if self.app.fleet.load().replicas(self.call.model.as_str()).len() > 0 {
            observer.model(&self.call.model);
        }
        let (mut sends, mut loads) = (0, 0);
        while sends < self.app.config.limits.tries_max.get() && loads <= LOADS_MAX {
            match self.route() {
                Ok(Route::Serve(target)) => {
                    sends += 1;
                    observer.tries(&target.node.id);
                    match self.app.proxy.attempt(&target, self.call).await {
                        Ok(answer) => return Ok(answer),
                        Err(error) => self.learn(&target, error, observer)?,
                    }
                }
                Ok(Route::ColdLoad) => {
                    loads += 1;
                    self.app.lifecycle.ensure_loaded(&self.call.model, &self.tried).await.map_err(boxed)?;
                }
                Err(RouteError::Exhausted(_)) if self.may_replay() => {}
                Err(error) => return Err(self.give_up(error)),
            }
        }
        let model = self.call.model.to_string();
        Err(self.give_up(RouteError::Exhausted(model)))
    }

    fn route(&self) -> Result<Route, RouteError> {
        let request = RouteRequest { model: self.call.model.as_str(), tried: &self.tried, turn: self.app.next_turn() };
        route(&self.app.fleet.load(), &request)
    }

    /// What a failed attempt says about the node and about where to go next.
    fn learn(&mut self, target: &Target, error: AttemptError, observer: &Observer) -> Result<(), Box<Response>> {
        let (fleet, node) = (&self.app.fleet, &target.node.id);
        // A whole answer sends no heartbeats: a long one may well have been on its way, and a second node would take as long.
        let hopeless = matches!(error, AttemptError::TimedOut { .. }) && !self.call.stream;
        if hopeless || matches!(error, AttemptError::Refused(_)) {
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
            AttemptError::Reset { .. } | AttemptError::TimedOut { .. } => fleet.poll_soon(node),
            _ => {}
        }
        // A node that only lacks the model is still the right one once it has it.
        if !matches!(error, AttemptError::NotLoaded(_)) {
            self.tried.push(node.clone());
        }
        self.last = Some((node.clone(), error));
        Ok(())
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

    /// The last node's own words tell more than ours.
    fn give_up(self, error: RouteError) -> Box<Response> {
        match self.last {
            Some((node, last)) => Box::new(last.into_response(node.as_str())),
            None => boxed(error),
        }
    }
}

fn boxed(error: impl Into<Refusal>) -> Box<Response> {
    Box::new(error.into().into_response())
}
