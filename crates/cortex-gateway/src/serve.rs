//! Accepting connections, within a limit, until told to stop; then letting the open ones finish.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How connections are served.
#[derive(Clone, Debug)]
pub(crate) struct Serving {
    pub(crate) connections_max: usize,
    pub(crate) head_wait_max: Duration,
    /// Accepts no more; each open connection ends with the request it is at.
    pub(crate) stop: CancellationToken,
    /// Cuts what is still open.
    pub(crate) kill: CancellationToken,
    /// Every connection's task.
    pub(crate) connections: TaskTracker,
}

/// A head that is not whole when this much was read is answered 431. One read may bring twice as much, so that heads up to 64 KiB can pass.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// Out of file descriptors, most likely: those in use must be given back first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

impl Serving {
    pub(crate) async fn run(self, listener: TcpListener, router: Router) {
        let places = Arc::new(Semaphore::new(self.connections_max.min(Semaphore::MAX_PERMITS)));
        let service = TowerToHyperService::new(router);
        loop {
            let accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (place, listener.accept().await)
            };
            let Some((place, accepted)) = self.stop.run_until_cancelled(accepted).await else { return };
            match accepted {
                Ok((socket, _)) => {
                    let connection = self.clone().connection(socket, service.clone());
                    self.connections.spawn(async move {
                        connection.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// The client's end of the connection going away drops the handler at work, in whatever phase it is.
    async fn connection(self, socket: TcpStream, service: TowerToHyperService<Router>) {
        let _ = socket.set_nodelay(true);
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(self.head_wait_max).max_buf_size(HEAD_BYTES_MAX);
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(socket), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.kill.cancelled() => return,
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = self.kill.cancelled() => return,
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended");
        }
    }
}
