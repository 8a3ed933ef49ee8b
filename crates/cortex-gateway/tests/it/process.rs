//! A gateway in a process of its own: this program, started again and told to be one.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};

use cortex_core::config::GatewayConfig;
use cortex_gateway::Gateway;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// The configuration of the gateway that this process is to be.
const CONFIG: &str = "CORTEX_TEST_GATEWAY";
/// Set: what the gateway logs goes to a journal that reads nothing.
pub(crate) const DEAF_JOURNAL: &str = "CORTEX_TEST_DEAF_JOURNAL";
/// Lines that wait for that journal.
const LINES_MAX: usize = 64;
const SERVES: &str = "the gateway serves at ";

/// Dropping it ends the process.
pub(crate) struct GatewayProcess {
    pub(crate) addr: SocketAddr,
    pub(crate) metrics_addr: SocketAddr,
    child: Child,
}

impl GatewayProcess {
    /// Starts `test` of this program, which must call [`be_a_gateway`].
    pub(crate) fn start(test: &str, config: &str, change: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture"]).env(CONFIG, config).stdin(Stdio::piped()).stdout(Stdio::piped());
        change(&mut command);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let line = lines.find_map(|line| Some(line.split_once(SERVES)?.1.to_owned())).expect("it serves");
        let (addr, metrics_addr) = line.split_once(' ').unwrap();
        Self { addr: addr.parse().unwrap(), metrics_addr: metrics_addr.parse().unwrap(), child }
    }
}

impl Drop for GatewayProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether this process was told to be a gateway. It is one, then, until nobody holds its standard input open any more.
pub(crate) async fn be_a_gateway() -> bool {
    let Ok(config) = std::env::var(CONFIG) else { return false };
    let _journal = std::env::var_os(DEAF_JOURNAL).map(|_| {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let (aside, drain) = cortex_log::aside(Journal(ours), LINES_MAX);
        tracing_subscriber::registry().with(LevelFilter::from_level(Level::INFO)).with(aside).init();
        (theirs, drain)
    });
    let gateway = Gateway::start(GatewayConfig::parse(&config).unwrap()).await.unwrap();
    println!("{SERVES}{} {}", gateway.addr, gateway.metrics_addr);
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    gateway.shutdown().await;
    true
}

/// Sends as the journal's layer does: to a socket, and waits where it is full.
struct Journal(UnixDatagram);

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.0.send(event.metadata().name().as_bytes()).unwrap();
    }
}
