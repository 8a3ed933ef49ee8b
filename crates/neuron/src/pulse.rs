//! Whether the node lives, as its service manager hears it: asked over the node's own socket, through the server, the router and
//! the bookkeeping of models. A process that merely exists does not pass.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use cortex_net::{DialWaits, Dialer, Trust};
use neuron_api::{Client, ClientTimeouts};
use tokio::time::{Interval, MissedTickBehavior, interval};

/// Asks again and again.
pub struct Pulse {
    client: Client,
    next: Interval,
    answer_max: Duration,
}

impl Pulse {
    /// For a node that listens on `addr`, and a manager that gives it up after `limit` without a sign. The connection stays open
    /// between two questions, so that many clients cannot keep the node from asking itself.
    pub fn new(addr: SocketAddr, tls: bool, limit: Duration) -> Self {
        // Three tries before the limit, each with the time of one.
        let period = (limit / 3).max(Duration::from_millis(1));
        let timeouts = ClientTimeouts { connect: period, call: period, ..ClientTimeouts::default() };
        let mut next = interval(period);
        next.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let scheme = if tls { "https" } else { "http" };
        let dialer = Dialer::new(Arc::new(ArcSwap::from_pointee(Trust::blind())), DialWaits::connecting(period));
        Self { client: Client::over(&format!("{scheme}://{}", reachable(addr)), timeouts, dialer), next, answer_max: period }
    }

    /// Waits until it is time to ask, and asks. The error says why the node does not count as alive.
    pub async fn beat(&mut self) -> Result<(), String> {
        self.next.tick().await;
        match tokio::time::timeout(self.answer_max, self.client.health()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} ms", self.answer_max.as_millis())),
        }
    }
}

/// Who listens on all addresses is asked on the nearest.
fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_asked_where_it_can_be_reached() {
        let cases = [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("10.0.0.7:1", "10.0.0.7:1"), ("[fd00::1]:1", "[fd00::1]:1")];
        for (listens, asked) in cases {
            let listens: SocketAddr = listens.parse().unwrap();
            assert_eq!(reachable(listens).to_string(), asked);
        }
    }
}
