//! The mock behind a real socket, whose connections can be cut.

use std::net::SocketAddr;
use std::sync::Arc;

use cortex_core::Harness;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::MockNeuron;
use crate::{ApiLimits, guarded, router};

/// A mock that serves. Dropping it closes the listener and cuts all connections.
#[derive(Debug)]
pub struct MockServer {
    /// Where it listens.
    pub addr: SocketAddr,
    /// The node behind it.
    pub mock: MockNeuron,
    _stop: DropGuard,
}

impl MockServer {
    /// `http://addr`, for configurations and clients.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }
}

impl MockNeuron {
    /// Serves on a free port of 127.0.0.1.
    pub async fn serve(&self) -> std::io::Result<MockServer> {
        self.serve_on("127.0.0.1:0".parse().expect("a literal address")).await
    }

    /// Serves on `addr`; a dead node comes back this way under its old address.
    pub async fn serve_on(&self, addr: SocketAddr) -> std::io::Result<MockServer> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept(listener, self.clone(), stop.clone())));
        Ok(MockServer { addr, mock: self.clone(), _stop: stop.drop_guard() })
    }
}

async fn accept(listener: TcpListener, mock: MockNeuron, stop: CancellationToken) {
    let harness: Arc<dyn Harness> = Arc::new(mock.clone());
    let router = router(harness, ApiLimits::default());
    let token = &mock.node.token;
    let service = TowerToHyperService::new(if token.is_empty() { router } else { guarded(router, token) });
    while let Ok((socket, _)) = listener.accept().await {
        let mut cuts = mock.node.cuts.subscribe();
        let connection = serve_connection(socket, service.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            tokio::select! {
                () = connection => {}
                _ = cuts.changed() => {}
            }
        }));
    }
}

async fn serve_connection(socket: TcpStream, service: TowerToHyperService<axum::Router>) {
    let _ = socket.set_nodelay(true);
    let connection = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(socket), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection of the mock ended");
    }
}
