//! Where the names of servers lead, and what is done when they lead elsewhere.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper_util::client::legacy::connect::dns::Name;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower_service::Service;

/// An answer that is on its way.
pub type Answer = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// Whom names are asked of.
pub trait Resolve: fmt::Debug + Send + Sync {
    /// The addresses of `host`; their ports do not count.
    fn resolve(&self, host: &str) -> Answer;
}

/// The system's resolver, `getaddrinfo`, on a thread that it may block.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, host: &str) -> Answer {
        let host = host.to_owned();
        Box::pin(async move { Ok(tokio::net::lookup_host((host, 0)).await?.collect()) })
    }
}

/// The names that were dialled, each with its last answer. A name is asked for anew for each connection; where nobody answers, the last
/// answer counts, so that servers stay reachable while name servers are not.
#[derive(Debug)]
pub struct Names {
    resolver: Arc<dyn Resolve>,
    wait_max: Duration,
    known: ArcSwap<BTreeMap<String, Vec<SocketAddr>>>,
    moves: watch::Sender<u64>,
}

impl Names {
    /// An answer of `resolver` is waited for up to `wait_max`.
    pub fn new(resolver: Arc<dyn Resolve>, wait_max: Duration) -> Self {
        Self { resolver, wait_max, known: ArcSwap::default(), moves: watch::Sender::new(0) }
    }

    /// Asks for all names again, for ever, once in `every`.
    pub async fn keep_fresh(self: Arc<Self>, every: Duration) {
        loop {
            tokio::time::sleep(every).await;
            let mut asking = JoinSet::new();
            let hosts: Vec<String> = self.known.load().keys().cloned().collect();
            for host in hosts {
                let names = Arc::clone(&self);
                asking.spawn(async move { names.look_up(&host).await.map(drop) });
            }
            // A name without an answer keeps the last one.
            asking.join_all().await;
        }
    }

    /// Changes whenever a name was seen to have lost an address: connections to it should be let go.
    pub fn moves(&self) -> watch::Receiver<u64> {
        self.moves.subscribe()
    }

    /// Forgets all names but these.
    pub fn retain(&self, wanted: impl Fn(&str) -> bool) {
        self.known.rcu(|known| {
            let mut known = BTreeMap::clone(known);
            known.retain(|host, _| wanted(host));
            known
        });
    }

    /// Where `host` is.
    ///
    /// # Errors
    /// There is no answer, and there never was one.
    pub async fn look_up(&self, host: &str) -> io::Result<Vec<SocketAddr>> {
        let late = || io::Error::new(io::ErrorKind::TimedOut, format!("the name `{host}` was not resolved within {:?}", self.wait_max));
        let answer = tokio::time::timeout(self.wait_max, self.resolver.resolve(host)).await.unwrap_or_else(|_| Err(late()));
        let failed = match answer {
            Ok(found) if !found.is_empty() => {
                self.learn(host, &found);
                return Ok(found);
            }
            Ok(_) => io::Error::new(io::ErrorKind::NotFound, format!("the name `{host}` has no address")),
            Err(error) => error,
        };
        let last = self.known.load().get(host).cloned();
        last.inspect(|_| tracing::debug!(host, error = %failed, "a name has no answer, its last one counts")).ok_or(failed)
    }

    fn learn(&self, host: &str, found: &[SocketAddr]) {
        let known = self.known.load();
        let before = known.get(host).map_or(&[][..], Vec::as_slice);
        if before == found {
            return;
        }
        let moved = before.iter().any(|address| !found.contains(address));
        self.known.rcu(|known| {
            let mut known = BTreeMap::clone(known);
            known.insert(host.to_owned(), found.to_vec());
            known
        });
        if moved {
            let shown = |addresses: &[SocketAddr]| addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(", ");
            tracing::info!(host, from = shown(before), to = shown(found), "a name leads elsewhere");
            self.moves.send_modify(|moves| *moves += 1);
        }
    }
}

/// [`Names`] as hyper's connector asks it.
#[derive(Clone, Debug)]
pub(crate) struct LookUp(pub(crate) Arc<Names>);

impl Service<Name> for LookUp {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let names = Arc::clone(&self.0);
        Box::pin(async move { Ok(names.look_up(name.as_str()).await?.into_iter()) })
    }
}
