//! What networks do: hosts that are gone without a word, and names that lead elsewhere.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cortex_core::NodeState;
use cortex_core::config::{Endpoint, Millis};
use cortex_gateway::{Gateway, Listeners};
use cortex_net::{Answer, Resolve};
use neuron_api::mock::{MockConfig, MockModel, MockNeuron, MockServer};
use socket2::{SockFilter, SockRef, Socket};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::{Cost, load};
use crate::rig::{Rig, chat, config, until};

/// Stands between the gateway and a node, and can do what a host does that loses its power: nothing any more.
struct Relay {
    addr: SocketAddr,
    side: Arc<Mutex<Side>>,
    connections: TaskTracker,
    _stop: DropGuard,
}

/// Its sockets on the gateway's side.
struct Side {
    listener: Socket,
    accepted: Vec<Socket>,
    silent: bool,
}

impl Relay {
    async fn to(node: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let side = Side { listener: SockRef::from(&listener).try_clone().unwrap(), accepted: Vec::new(), silent: false };
        let (stop, connections) = (CancellationToken::new(), TaskTracker::new());
        let relay = Self {
            addr: listener.local_addr().unwrap(),
            side: Arc::new(Mutex::new(side)),
            connections: connections.clone(),
            _stop: stop.clone().drop_guard(),
        };
        let side = Arc::clone(&relay.side);
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            while let Ok((theirs, _)) = listener.accept().await {
                side.lock().unwrap().accepts(SockRef::from(&theirs).try_clone().unwrap());
                connections.spawn(stop.clone().run_until_cancelled_owned(pass(theirs, node)));
            }
        }));
        relay
    }

    /// Nothing that is sent to it arrives, and nothing tells so: neither an end nor a refusal.
    fn falls_silent(&self) {
        let mut side = self.side.lock().unwrap();
        side.silent = true;
        hears_nothing(&side.listener);
        side.accepted.iter().for_each(hears_nothing);
    }

    fn accepted(&self) -> usize {
        self.side.lock().unwrap().accepted.len()
    }
}

impl Side {
    fn accepts(&mut self, socket: Socket) {
        if self.silent {
            hears_nothing(&socket);
        }
        self.accepted.push(socket);
    }
}

async fn pass(mut theirs: TcpStream, node: SocketAddr) {
    let Ok(mut ours) = TcpStream::connect(node).await else { return };
    let _ = ours.set_nodelay(true);
    let _ = theirs.set_nodelay(true);
    let _ = tokio::io::copy_bidirectional(&mut theirs, &mut ours).await;
}

/// A filter of one instruction, "keep 0 bytes": the kernel drops each segment before TCP sees it.
fn hears_nothing(socket: &Socket) {
    const RETURN: u16 = 0x06;
    socket.attach_filter(&[SockFilter::new(RETURN, 0, 0, 0)]).unwrap();
}

pub(super) async fn half_open() -> Cost {
    const ACKNOWLEDGE_MS_MAX: u64 = 500;
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(MockNeuron::new(MockConfig::new([MockModel::loaded("m")])).serve().await.unwrap());
    }
    let relay = Relay::to(nodes[0].addr).await;
    let mut config = config([relay.addr, nodes[1].addr, nodes[2].addr]);
    config.timeouts.acknowledge_ms_max = Millis::new(ACKNOWLEDGE_MS_MAX);
    config.timeouts.connect_ms_max = Millis::new(ACKNOWLEDGE_MS_MAX);
    let rig = Rig { gateway: Gateway::start(config).await.unwrap(), nodes };
    let loading = tokio::spawn(load(rig.gateway.addr, 2_000, 20));
    rig.mock(0).wait_for(|counts| counts.finished > 50).await;
    relay.falls_silent();
    let silent = Instant::now();
    until(async || matches!(rig.state(0), NodeState::Ejected { .. })).await;
    let noticed = silent.elapsed();
    let tally = loading.await.unwrap();
    assert_eq!(tally.lost, 0, "{:?}", tally.first_loss);
    // Each connection is found out once, and not used again.
    let open = relay.accepted();
    let resets = rig.metric("cortex_retries_total{model=\"m\",node=\"a\",reason=\"reset\"}").await.unwrap_or_default();
    assert!(resets <= open as f64, "{resets} requests failed on {open} connections");
    Cost::of(
        &tally,
        format!(
            "neither an end nor a refusal came from it; it was out after {noticed:.1?} (acknowledge_ms_max {ACKNOWLEDGE_MS_MAX} ms here); \
             {resets} requests on its {open} connections moved, {} streams that had begun ended in an error event",
            tally.cut
        ),
    )
}

/// A name server with one name.
#[derive(Debug)]
struct Book(Mutex<Option<Ipv4Addr>>);

impl Resolve for Book {
    fn resolve(&self, host: &str) -> Answer {
        assert_eq!(host, NAME);
        let found = *self.0.lock().unwrap();
        let answer = found.map(|address| vec![SocketAddr::from((address, 0))]);
        Box::pin(async move { answer.ok_or_else(|| io::Error::other("the name server is away")) })
    }
}

const NAME: &str = "node.test";

/// What the name leads to, one after the other: all on one port, each on an address of its own.
struct Hosts {
    port: u16,
    first: Relay,
    behind_first: MockServer,
}

impl Hosts {
    async fn new() -> Self {
        let behind_first = MockNeuron::new(MockConfig::new([MockModel::loaded("m")])).serve().await.unwrap();
        let first = Relay::to(behind_first.addr).await;
        Self { port: first.addr.port(), first, behind_first }
    }

    /// Another host on the same port.
    async fn another(&self, address: Ipv4Addr) -> MockServer {
        MockNeuron::new(MockConfig::new([MockModel::loaded("m")])).serve_on((address, self.port).into()).await.unwrap()
    }
}

pub(super) async fn name_leads_elsewhere() -> Cost {
    let hosts = Hosts::new().await;
    let [second_at, third_at] = [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3)];
    let second = hosts.another(second_at).await;
    let IpAddr::V4(first_at) = hosts.first.addr.ip() else { unreachable!("it listens on 127.0.0.1") };
    let book = Arc::new(Book(Mutex::new(Some(first_at))));
    let leads_to = |address: Option<Ipv4Addr>| *book.0.lock().unwrap() = address;
    let mut config = config([hosts.first.addr]);
    config.neurons[0].endpoint = Endpoint::parse(&format!("http://{NAME}:{}", hosts.port)).unwrap();
    config.timeouts.resolve_ms = Millis::new(50);
    config.timeouts.probe_ms = Millis::new(5);
    config.timeouts.queue_ms_max = Millis::new(30_000);
    let listeners = Listeners::bind(&config).await.unwrap();
    let gateway = Gateway::start_with(config, listeners, Arc::<Book>::clone(&book)).await.unwrap();
    let addr = gateway.addr;
    let rig = Rig { gateway, nodes: Vec::new() };

    // The host moves, and its old address still answers: the connections go with the name.
    let loading = tokio::spawn(load(addr, 2_000, 20));
    hosts.behind_first.mock.wait_for(|counts| counts.finished > 50).await;
    leads_to(Some(second_at));
    let moved = Instant::now();
    until(async || hosts.first.connections.is_empty()).await;
    let left = moved.elapsed();
    let mut tally = loading.await.unwrap();
    let before = hosts.behind_first.mock.counts().generations;
    assert_eq!((tally.lost, tally.cut), (0, 0), "{:?}", tally.first_loss);
    assert!(second.mock.counts().finished > 0);

    // Nobody knows the name any more: its last address counts.
    leads_to(None);
    second.mock.cut_connections();
    tally = tally.and(load(addr, 100, 10).await);
    assert_eq!(hosts.behind_first.mock.counts().generations, before, "nothing goes to the old address");

    // The host is gone, and the name leads to the one in its place: whoever finds that out asks for the name anew.
    let third = hosts.another(third_at).await;
    leads_to(Some(third_at));
    drop(second);
    until(async || rig.client().chat(&chat("m", "are you there?")).await.status == 200).await;
    tally = tally.and(load(addr, 100, 10).await);
    assert_eq!(tally.lost, 0, "{:?}", tally.first_loss);
    assert!(third.mock.counts().finished >= 100);
    Cost::of(
        &tally,
        format!(
            "all connections had left the old address {left:.0?} after the change (resolve_ms 50 ms here), which still answered; then no name server answered; then the host died"
        ),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_to_a_host_that_is_gone_are_thrown_away() {
    let node = MockNeuron::new(MockConfig::new([MockModel::loaded("m")])).serve().await.unwrap();
    let relay = Relay::to(node.addr).await;
    let mut config = config([relay.addr]);
    config.timeouts.acknowledge_ms_max = Millis::new(1_000);
    let rig = Rig { gateway: Gateway::start(config).await.unwrap(), nodes: vec![node] };
    assert_eq!(rig.client().chat(&chat("m", "hi")).await.status, 200);
    let ours = |relay: &Relay| relay.side.lock().unwrap().accepted.iter().filter(|socket| is_open_at_the_other_end(socket)).count();
    assert!(ours(&relay) > 0);
    relay.falls_silent();
    let silent = Instant::now();
    until(async || ours(&relay) == 0).await;
    println!("idle connections were given up after {:.1?}", silent.elapsed());
    assert!(silent.elapsed() < Duration::from_secs(60));
}

/// Whether the process still has the socket that this one is connected with; both are of this process.
fn is_open_at_the_other_end(socket: &Socket) -> bool {
    let (ours, theirs) = (socket.local_addr().unwrap().as_socket().unwrap(), socket.peer_addr().ok().and_then(|peer| peer.as_socket()));
    let shown = |address: SocketAddr| match address {
        SocketAddr::V4(address) => format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port()),
        SocketAddr::V6(_) => unreachable!("all sockets here are on 127.0.0.1"),
    };
    let Some(theirs) = theirs else { return false };
    let pair = format!("{} {} 01", shown(theirs), shown(ours)); // 01: established
    std::fs::read_to_string("/proc/net/tcp").unwrap().contains(&pair)
}
