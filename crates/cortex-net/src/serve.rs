//! Accepting connections, within a limit, until told to stop; then letting the open ones finish.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::identity::Identity;
use crate::wire::Wire;

/// How connections are served.
#[derive(Clone, Debug)]
pub struct Serving {
    /// Open at once; beyond it a client waits to be accepted.
    pub connections_max: usize,
    /// Time for a client to send a request's head, and before that, to agree on TLS.
    pub head_wait_max: Duration,
    /// What TLS shows; absent: no TLS.
    pub identity: Option<Arc<Identity>>,
    /// Accepts no more; each open connection ends with the request it is at.
    pub stop: CancellationToken,
    /// Cuts what is still open.
    pub kill: CancellationToken,
    /// Every connection's task.
    pub connections: TaskTracker,
}

/// A head that is not whole when this much was read is answered 431. One read may bring twice as much, so that heads up to 64 KiB can pass.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// Out of file descriptors, most likely: those in use must be given back first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Requests at once on one connection of HTTP/2.
const STREAMS_MAX: u32 = 128;
/// A client of HTTP/2 that is silent is asked this often whether it is there, and has as long to answer.
const STILL_THERE: Duration = Duration::from_secs(20);

impl Serving {
    /// Serves until [`Serving::stop`].
    pub async fn run<S, B>(self, listener: TcpListener, service: S)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Future: Send> + Clone + Send + 'static,
        S::Error: Into<Box<dyn Error + Send + Sync>>,
        B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        let places = Arc::new(Semaphore::new(self.connections_max.min(Semaphore::MAX_PERMITS)));
        loop {
            let accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (place, listener.accept().await)
            };
            // The semaphore is never closed.
            let Some((Ok(place), accepted)) = self.stop.run_until_cancelled(accepted).await else { return };
            match accepted {
                Ok((socket, _)) => {
                    self.connections.spawn(self.clone().connection(socket, service.clone(), place));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// The client's end of the connection going away drops the handler at work, in whatever phase it is. What only some connections need, and
    /// needs much room, is boxed: there is one such task for each open stream.
    async fn connection<S, B>(self, socket: TcpStream, service: S, _place: OwnedSemaphorePermit)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Future: Send> + Send + 'static,
        S::Error: Into<Box<dyn Error + Send + Sync>>,
        B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        let _ = socket.set_nodelay(true);
        let wire = match &self.identity {
            None => Wire::Tcp(socket),
            Some(identity) => match self.kill.run_until_cancelled(Box::pin(self.secure(identity, socket))).await.flatten() {
                Some(wire) => wire,
                None => return,
            },
        };
        let ended = if speaks_http2(&wire) { Box::pin(self.http2(wire, service)).await } else { self.http1(wire, service).await };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended");
        }
    }

    async fn secure(&self, identity: &Identity, socket: TcpStream) -> Option<Wire> {
        match tokio::time::timeout(self.head_wait_max, identity.acceptor().accept(socket)).await {
            Ok(Ok(secured)) => Some(Wire::Tls(Box::new(secured.into()))),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a client did not agree on TLS");
                None
            }
            Err(_) => None,
        }
    }

    async fn http1<S, B>(&self, wire: Wire, service: S) -> hyper::Result<()>
    where
        S: Service<Request<Incoming>, Response = Response<B>>,
        S::Error: Into<Box<dyn Error + Send + Sync>>,
        B: Body<Error: Into<Box<dyn Error + Send + Sync>>> + 'static,
    {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(self.head_wait_max).max_buf_size(HEAD_BYTES_MAX);
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(wire), service));
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = self.kill.cancelled() => return Ok(()),
            () = self.stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        self.kill.run_until_cancelled(connection).await.unwrap_or(Ok(()))
    }

    async fn http2<S, B>(&self, wire: Wire, service: S) -> hyper::Result<()>
    where
        S: Service<Request<Incoming>, Response = Response<B>, Future: Send + 'static>,
        S::Error: Into<Box<dyn Error + Send + Sync>>,
        B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).keep_alive_interval(STILL_THERE).keep_alive_timeout(STILL_THERE);
        builder.max_concurrent_streams(STREAMS_MAX).max_header_list_size(2 * HEAD_BYTES_MAX as u32);
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(wire), service));
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = self.kill.cancelled() => return Ok(()),
            () = self.stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        self.kill.run_until_cancelled(connection).await.unwrap_or(Ok(()))
    }
}

fn speaks_http2(wire: &Wire) -> bool {
    matches!(wire, Wire::Tls(secured) if secured.get_ref().1.alpn_protocol() == Some(b"h2"))
}
