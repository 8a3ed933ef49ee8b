//! Fetching a picture from an address that a client chose, without lending the client this node's place in the network.
//!
//! Every name is resolved here and every address checked before a connection is made, after each redirect again. No proxy is
//! used, since a proxy would resolve the name a second time.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::LOCATION;
use reqwest::redirect::Policy;
use reqwest::{Client, Response, Url};

use crate::config::Network;
use crate::config::is_public;
use crate::download::story;

/// Resolves a host name to its addresses.
pub type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>> + Send + Sync>;

/// What a client is told of an address that is not fetched; which address it was is not the client's business.
const CLOSED: &str = "the picture's host is not a public address; send the picture as a data: url, or ask the operator to allow its network \
                      in images.private_networks_allowed";

/// Fetches pictures from public addresses.
#[derive(Debug)]
pub struct Fetcher {
    http: Client,
    guard: Guard,
    bytes_max: usize,
    redirects_max: usize,
    time_max: Duration,
}

/// Decides which addresses may be connected to.
#[derive(Clone, Debug)]
struct Guard {
    allowed: Arc<[Network]>,
}

/// The system's answer, less what the guard refuses.
struct GuardedResolver {
    lookup: Lookup,
    guard: Guard,
}

/// Asks the system's resolver.
pub(super) fn system_lookup() -> Lookup {
    Arc::new(|host| Box::pin(async move { Ok(tokio::net::lookup_host((host, 0)).await?.map(|address| address.ip()).collect()) }))
}

impl Fetcher {
    /// At most `bytes_max` bytes within `time_max`; addresses in `allowed` are fetched from although they are not public.
    pub fn new(allowed: Vec<Network>, bytes_max: usize, redirects_max: usize, time_max: Duration, lookup: Lookup) -> Result<Self, String> {
        let guard = Guard { allowed: allowed.into() };
        let http = Client::builder()
            .dns_resolver(Arc::new(GuardedResolver { lookup, guard: guard.clone() }))
            .redirect(Policy::none())
            .no_proxy()
            .user_agent(concat!("neuron/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| story(&error))?;
        Ok(Self { http, guard, bytes_max, redirects_max, time_max })
    }

    /// The bytes at `url`, or what to tell the client.
    pub async fn fetch(&self, url: Url) -> Result<Vec<u8>, String> {
        let fetched = tokio::time::timeout(self.time_max, self.fetch_untimed(url)).await;
        fetched.unwrap_or_else(|_| Err(format!("the picture did not arrive within {} s", self.time_max.as_secs())))
    }

    async fn fetch_untimed(&self, mut url: Url) -> Result<Vec<u8>, String> {
        for _ in 0..=self.redirects_max {
            let response = self.send(url.clone()).await?;
            let status = response.status();
            if status.is_success() {
                return self.body(response).await;
            }
            if !status.is_redirection() {
                return Err(format!("the picture's host answered {}", status.as_u16()));
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            url = location.and_then(|location| url.join(location).ok()).ok_or("the picture's host redirects to nowhere")?;
        }
        Err(format!("the picture is behind more than {} redirects", self.redirects_max))
    }

    async fn send(&self, url: Url) -> Result<Response, String> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!("the picture's host redirects to `{}:`", url.scheme()));
        }
        // An address written as digits never reaches the resolver.
        let literal = url.host_str().and_then(|host| host.trim_matches(['[', ']']).parse().ok());
        if literal.is_some_and(|address| !self.guard.allows(address)) {
            return Err(CLOSED.to_owned());
        }
        self.http.get(url).send().await.map_err(|error| {
            let story = story(&error.without_url());
            if story.contains(CLOSED) { CLOSED.to_owned() } else { format!("the picture cannot be fetched: {story}") }
        })
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, String> {
        let too_large = || format!("the picture is larger than {} MiB", self.bytes_max >> 20);
        let announced = response.content_length().unwrap_or(0);
        if announced > self.bytes_max as u64 {
            return Err(too_large());
        }
        let mut bytes = Vec::with_capacity(usize::try_from(announced).unwrap_or(0));
        while let Some(piece) = response.chunk().await.map_err(|error| format!("the picture broke off: {}", story(&error.without_url())))? {
            if bytes.len() + piece.len() > self.bytes_max {
                return Err(too_large());
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }
}

impl Guard {
    fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        is_public(address) || self.allowed.iter().any(|network| network.contains(address))
    }
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (lookup, guard) = (self.lookup.clone(), self.guard.clone());
        Box::pin(async move {
            let addresses = lookup(name.as_str().to_owned()).await?;
            // One closed address among public ones is a trick or a mistake; neither is worth a connection.
            if addresses.iter().any(|address| !guard.allows(*address)) {
                return Err(CLOSED.into());
            }
            let addresses: Addrs = Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}
