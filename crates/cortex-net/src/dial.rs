//! Opening connections, for hyper's pools.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tower_service::Service;

use crate::names::{LookUp, Names, SystemResolver};
use crate::trust::Trust;
use crate::wire::Wire;

/// The bounds of a connection's waits.
#[derive(Clone, Copy, Debug)]
pub struct DialWaits {
    /// For TCP, and again for TLS.
    pub connect_max: Duration,
    /// Time for the other host to acknowledge what was sent, or a probe after as much silence; then the connection is given up, for the
    /// host may be gone without a word.
    pub acknowledge_max: Duration,
}

impl DialWaits {
    /// The usual bounds with another one for connecting.
    pub fn connecting(connect_max: Duration) -> Self {
        Self { connect_max, acknowledge_max: Duration::from_secs(10) }
    }

    /// Silence after which a connection is probed, and the time between probes; the kernel counts in seconds.
    fn probe_every(self) -> Duration {
        (self.acknowledge_max / 2).max(Duration::from_secs(1))
    }
}

/// Opens connections to `http` and `https` addresses. Names are looked up anew for each.
#[derive(Clone, Debug)]
pub struct Dialer {
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Network { tcp: HttpConnector<LookUp>, trust: Arc<ArcSwap<Trust>>, connect_max: Duration },
    Memory(Arc<dyn Line>),
}

/// Servers in the same process.
pub trait Line: fmt::Debug + Send + Sync {
    /// A connection to the server at `authority` (`host:port`).
    ///
    /// # Errors
    /// As a network would answer: nobody listens there.
    fn dial(&self, authority: &str) -> io::Result<DuplexStream>;
}

type Error = Box<dyn std::error::Error + Send + Sync>;

impl Dialer {
    /// Over the network, to where the system says that names lead.
    pub fn new(trust: Arc<ArcSwap<Trust>>, waits: DialWaits) -> Self {
        Self::with_names(trust, waits, Arc::new(Names::new(Arc::new(SystemResolver), waits.connect_max)))
    }

    /// Over the network, to where `names` lead.
    pub fn with_names(trust: Arc<ArcSwap<Trust>>, waits: DialWaits, names: Arc<Names>) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(LookUp(names));
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(waits.connect_max));
        tcp.set_keepalive(Some(waits.probe_every()));
        tcp.set_keepalive_interval(Some(waits.probe_every()));
        tcp.set_tcp_user_timeout(Some(waits.acknowledge_max));
        Self { kind: Kind::Network { tcp, trust, connect_max: waits.connect_max } }
    }

    /// Over the network; `https` servers must show certificates of a public authority.
    pub fn public(connect_max: Duration) -> Self {
        Self::new(Arc::new(ArcSwap::from_pointee(Trust::public())), DialWaits::connecting(connect_max))
    }

    /// To servers in the same process; `https` is not encrypted there.
    pub fn in_memory(line: Arc<dyn Line>) -> Self {
        Self { kind: Kind::Memory(line) }
    }
}

impl Service<Uri> for Dialer {
    type Response = TokioIo<Wire>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<Wire>, Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match &mut self.kind {
            Kind::Network { tcp, .. } => tcp.poll_ready(cx).map_err(Into::into),
            Kind::Memory(_) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        match &mut self.kind {
            Kind::Memory(line) => {
                let wire = line.dial(uri.authority().map_or("", http::uri::Authority::as_str));
                Box::pin(async { Ok(TokioIo::new(Wire::Memory(wire?))) })
            }
            Kind::Network { tcp, trust, connect_max } => {
                let (connecting, trust, connect_max) = (tcp.call(uri.clone()), trust.load_full(), *connect_max);
                Box::pin(async move {
                    let tcp = connecting.await?.into_inner();
                    if uri.scheme_str() != Some("https") {
                        return Ok(TokioIo::new(Wire::Tcp(tcp)));
                    }
                    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
                    let name = ServerName::try_from(host.to_owned())?;
                    let connector = TlsConnector::from(trust.for_authority(uri.authority().map_or("", http::uri::Authority::as_str)));
                    let secured = tokio::time::timeout(connect_max, connector.connect(name, tcp)).await;
                    let secured = secured.map_err(|_| format!("no TLS within {connect_max:?}; does it speak plain http?"))??;
                    Ok(TokioIo::new(Wire::Tls(Box::new(secured.into()))))
                })
            }
        }
    }
}
