//! What surrounds every handler: a request gets its id, then its key and the page it comes from are looked at, then its route is taken.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use tower_service::Service;
use tracing::Instrument;

use crate::app::App;
use crate::middleware::request_log::RequestId;
use crate::middleware::{auth, cors};

/// The way to the routes. Layers of a router would box each request's future and clone the route once more for each of them.
#[derive(Clone, Debug)]
pub(crate) struct Front {
    app: Arc<App>,
    routes: Router,
}

impl Front {
    pub(crate) fn new(app: Arc<App>, routes: Router) -> Self {
        Self { app, routes }
    }

    async fn answer(self, mut request: Request) -> Response {
        let id = RequestId::attach(&mut request);
        let span = tracing::debug_span!("http", request_id = %id.0, method = %request.method(), path = %request.uri().path());
        let mut response = self.checked(request).instrument(span.clone()).await;
        span.in_scope(|| tracing::debug!(status = response.status().as_u16(), "answered"));
        id.show(&mut response);
        response
    }

    async fn checked(self, request: Request) -> Response {
        let origin = cors::allowed(&self.app, request.headers());
        // Before keys: a preflight carries none.
        let asks_first = origin.is_some() && cors::is_preflight(&request);
        let mut response = if asks_first { cors::preflight() } else { self.let_in(request).await };
        origin.into_iter().for_each(|origin| cors::allow(&mut response, origin));
        response
    }

    async fn let_in(mut self, mut request: Request) -> Response {
        match auth::check(&self.app, &mut request) {
            Ok(()) => self.routes.call(request).await.unwrap_or_else(|never| match never {}),
            Err(refusal) => *refusal,
        }
    }
}

impl<B> Service<http::Request<B>> for Front
where
    B: HttpBody<Data = Bytes, Error: Into<axum::BoxError>> + Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let (front, request) = (self.clone(), request.map(Body::new));
        Box::pin(async move { Ok(front.answer(request).await) })
    }
}
