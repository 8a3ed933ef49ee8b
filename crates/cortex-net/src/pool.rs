//! Connections to servers, kept for the next request.
//!
//! A connection has no task of its own: whoever waits for its answer drives it. What arrives wakes that one task, which reads it and passes it
//! on, and a request that is dropped closes its connection at once.

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, Uri};
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Instant;
use tower_service::Service;

use crate::dial::Dialer;
use crate::http1::{AnswerError, Connection, Framing};

/// Connections to any number of servers; clones share them.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

/// An answer's body, with the connection that it comes over: that one goes back to the pool after the last frame, and is closed if this is
/// dropped before.
#[derive(Debug)]
pub struct PooledBody {
    framing: Framing,
    lease: Option<Lease>,
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// There is no connection: the server has seen nothing.
    #[error("cannot connect")]
    Connect(#[source] Box<dyn Error + Send + Sync>),
    /// The connection broke before the answer began.
    #[error("no answer came")]
    Broken(#[source] AnswerError),
}

type Server = (Scheme, Authority);

struct Shared {
    dialer: Dialer,
    idle_max: Duration,
    idle: Mutex<Shelf>,
}

#[derive(Default)]
struct Shelf {
    /// Of each server, the one that was used last at the back.
    servers: HashMap<Server, VecDeque<Idle>>,
    /// Somebody looks after those that nobody takes any more.
    swept: bool,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

/// A connection, and the pool that it goes back to.
struct Lease {
    connection: Connection,
    server: Server,
    pool: Arc<Shared>,
}

impl Pool {
    /// Without connections yet. One that is idle is kept for `idle_max`.
    pub fn new(dialer: Dialer, idle_max: Duration) -> Self {
        Self { shared: Arc::new(Shared { dialer, idle_max, idle: Mutex::default() }) }
    }

    /// Sends `request` to the server that its URI names, which must bear to be asked twice: where a connection was closed while it was idle,
    /// or has been by the time that the request arrives, the request goes over a new one. Dropping the future closes the connection.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn request(&self, mut request: Request<Bytes>) -> Result<Response<PooledBody>, SendError> {
        let server = to_origin_form(&mut request)?;
        if let Some(mut idle) = self.shared.take(&server) {
            match idle.exchange(&request).await {
                Err(error) if error.is_a_closed_connection() && idle.has_been_silent() => {}
                answer => return self.leased(answer, idle, server),
            }
        }
        let mut fresh = self.shared.open(&server).await.map_err(SendError::Connect)?;
        let answer = fresh.exchange(&request).await;
        self.leased(answer, fresh, server)
    }

    fn leased(
        &self,
        answer: Result<(Response<()>, Framing), AnswerError>,
        connection: Connection,
        server: Server,
    ) -> Result<Response<PooledBody>, SendError> {
        let (head, framing) = answer.map_err(SendError::Broken)?;
        let lease = Lease { connection, server, pool: Arc::clone(&self.shared) };
        Ok(head.map(|()| PooledBody::new(framing, lease)))
    }
}

/// Leaves the path alone in the URI, and names the server in a header.
fn to_origin_form(request: &mut Request<Bytes>) -> Result<Server, SendError> {
    let parts = std::mem::take(request.uri_mut()).into_parts();
    let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
        return Err(SendError::Connect("the address names no server".into()));
    };
    let host = HeaderValue::from_str(authority.as_str()).map_err(|error| SendError::Connect(error.into()))?;
    *request.uri_mut() = Uri::from(parts.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/")));
    request.headers_mut().entry(HOST).or_insert(host);
    Ok((scheme, authority))
}

impl Shared {
    async fn open(&self, (scheme, authority): &Server) -> Result<Connection, Box<dyn Error + Send + Sync>> {
        let mut dialer = self.dialer.clone();
        let server = Uri::builder().scheme(scheme.clone()).authority(authority.clone()).path_and_query("/").build()?;
        poll_fn(|cx| dialer.poll_ready(cx)).await?;
        Ok(Connection::new(dialer.call(server).await?.into_inner()))
    }

    fn take(&self, server: &Server) -> Option<Connection> {
        loop {
            let Idle { mut connection, .. } = self.idle().servers.get_mut(server)?.pop_back()?;
            if connection.is_idle() {
                return Some(connection);
            }
        }
    }

    fn put_back(self: &Arc<Self>, server: Server, connection: Connection) {
        let mut shelf = self.idle();
        shelf.servers.entry(server).or_default().push_back(Idle { connection, since: Instant::now() });
        if !std::mem::replace(&mut shelf.swept, true) {
            tokio::spawn(sweep(Arc::downgrade(self), self.idle_max));
        }
    }

    fn idle(&self) -> MutexGuard<'_, Shelf> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes what is too old or was closed by the server; false when there is nothing left to look after.
    fn tidy(&self) -> bool {
        let mut shelf = self.idle();
        for idle in shelf.servers.values_mut() {
            idle.retain_mut(|idle| idle.since.elapsed() < self.idle_max && idle.connection.is_idle());
        }
        shelf.servers.retain(|_, idle| !idle.is_empty());
        shelf.swept = !shelf.servers.is_empty();
        shelf.swept
    }
}

/// Ends with the pool, or when it is empty; who puts a connection back then starts it anew.
async fn sweep(pool: Weak<Shared>, idle_max: Duration) {
    loop {
        tokio::time::sleep(idle_max / 4).await;
        if !pool.upgrade().is_some_and(|pool| pool.tidy()) {
            return;
        }
    }
}

impl PooledBody {
    fn new(framing: Framing, lease: Lease) -> Self {
        let mut answer = Self { framing, lease: Some(lease) };
        answer.notice_end();
        answer
    }

    /// A body of known length tells its end with its last frame, and then nobody asks for another.
    fn notice_end(&mut self) {
        if self.framing.is_done()
            && let Some(Lease { mut connection, server, pool }) = self.lease.take()
            && connection.is_idle()
        {
            pool.put_back(server, connection);
        }
    }
}

impl Body for PooledBody {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        let Self { framing, lease } = &mut *self;
        let Some(Lease { connection, .. }) = lease else { return Poll::Ready(None) };
        let frame = ready!(connection.poll_frame(cx, framing));
        self.notice_end();
        if !matches!(frame, Some(Ok(_))) {
            self.lease = None; // it broke, or ended with its connection
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.framing.is_done()
    }

    fn size_hint(&self) -> SizeHint {
        self.framing.rest().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("dialer", &self.shared.dialer).finish_non_exhaustive()
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("server", &self.server).finish_non_exhaustive()
    }
}
