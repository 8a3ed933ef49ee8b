//! `cortex serve`: the gateway as a service.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cortex_core::config::GatewayConfig;
use cortex_gateway::{Drained, Gateway, Listeners, RunningGateway, Setup};
use cortex_placement::Placement;
use sd_notify::NotifyState;
use tokio::net::TcpListener;

use crate::error::{CliError, Result, Status};
use crate::log;
use crate::placement;
use crate::signals::{ReloadSignal, StopSignals};

/// What the command line asks for.
#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// The configuration; without it, all of it comes from CORTEX_* variables
    #[arg(long, value_name = "PATH", env = "CORTEX_CONFIG")]
    config: Option<PathBuf>,
    /// Where clients connect, instead of what the configuration says
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Where Prometheus connects, instead of what the configuration says
    #[arg(long, value_name = "ADDR")]
    metrics_listen: Option<SocketAddr>,
    /// What `cortex placement render` wrote, or a models.ncl, instead of gateway.placement_file
    #[arg(long, value_name = "FILE", env = "CORTEX_PLACEMENT")]
    placement: Option<PathBuf>,
    /// Check the configuration, say what it comes to, and stop
    #[arg(long)]
    check: bool,
}

/// Serves until told to stop, then lets open requests end.
pub(crate) async fn run(args: ServeArgs) -> Result<()> {
    let setup = setup(&args)?;
    if args.check {
        setup.trust().and_then(|_| setup.identity()).map_err(|error| CliError::new(error.to_string()))?;
        return crate::output::text(&format!("{}\n", summary(setup.config())));
    }
    let _logging = log::start("info")?;
    let mut signals = StopSignals::listen()?;
    let mut reloads = ReloadSignal::listen()?;
    let listeners = listeners(setup.config()).await?;
    let gateway = Gateway::start_on(setup, listeners).await.map_err(anyhow::Error::from)?;
    notify(NotifyState::Ready);
    let mut pulse = Pulse::of_systemd();
    loop {
        tokio::select! {
            () = signals.next() => break,
            () = reloads.next() => reload(&args, &gateway),
            () = pulse.next() => notify(NotifyState::Watchdog),
        }
    }
    tracing::info!("draining; another signal stops at once");
    notify(NotifyState::Stopping);
    let draining = async {
        tokio::select! {
            drained = gateway.shutdown() => drained,
            never = pulse.beat() => never,
        }
    };
    stop(&mut signals, draining).await
}

/// Reads the configuration again. One that cannot be used changes nothing.
fn reload(args: &ServeArgs, gateway: &RunningGateway) {
    notify(NotifyState::Reloading);
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        notify(now);
    }
    match setup(args) {
        Ok(setup) => {
            if let Err(error) = gateway.reload(setup) {
                gateway.reload_failed(&error);
            }
        }
        Err(error) => gateway.reload_failed(&error),
    }
    notify(NotifyState::Ready);
}

/// The sockets that systemd opened for us, first the clients' and then Prometheus', or our own.
async fn listeners(config: &GatewayConfig) -> Result<Listeners> {
    let mut given = listenfd::ListenFd::from_env();
    let mut take = |place: usize| -> Result<Option<TcpListener>> {
        let socket = given.take_tcp_listener(place).map_err(|error| CliError::new(format!("cannot use the socket of systemd: {error}")))?;
        let Some(socket) = socket else { return Ok(None) };
        socket
            .set_nonblocking(true)
            .and_then(|()| TcpListener::from_std(socket))
            .map(Some)
            .map_err(|error| CliError::new(format!("cannot use the socket of systemd: {error}")))
    };
    let (api, metrics) = (take(0)?, take(1)?);
    let api = match api {
        Some(api) => api,
        None => listen("--listen", config.gateway.listen).await?,
    };
    let metrics = match metrics {
        Some(metrics) => metrics,
        None => listen("--metrics-listen", config.gateway.metrics_listen).await?,
    };
    Ok(Listeners { api, metrics })
}

/// Signs of life for systemd's watchdog, from the threads that serve: when those are stuck, it starts us anew.
struct Pulse(Option<tokio::time::Interval>);

impl Pulse {
    /// Twice in the time after which systemd loses patience, where it asked for it.
    fn of_systemd() -> Self {
        Self(sd_notify::watchdog_enabled().map(|patience| tokio::time::interval((patience / 2).max(Duration::from_millis(1)))))
    }

    async fn next(&mut self) {
        match &mut self.0 {
            Some(interval) => drop(interval.tick().await),
            None => std::future::pending().await,
        }
    }

    /// Goes on for ever.
    async fn beat<T>(&mut self) -> T {
        loop {
            self.next().await;
            notify(NotifyState::Watchdog);
        }
    }
}

/// The configuration, and the placement where one is named.
pub(crate) fn setup(args: &ServeArgs) -> Result<Setup> {
    let config = configuration(args)?;
    let Some(file) = args.placement.clone().or_else(|| config.gateway.placement_file.clone()) else { return Ok(config.into()) };
    let unusable = |why: String| CliError::new(format!("{} cannot be used", file.display())).note(why);
    let placement = Placement::from_json(&placement::rendered(&file)?).map_err(|error| unusable(error.to_string()))?;
    placement.verify().map_err(|flaw| unusable(format!("its proof does not hold: {flaw}; render it again")))?;
    Setup::placed(config, placement).map_err(|error| unusable(error.to_string()))
}

/// The file, the environment and the command line, each over the one before.
fn configuration(args: &ServeArgs) -> Result<GatewayConfig> {
    let text = match &args.config {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| CliError::new(format!("cannot read {}: {error}", path.display())).note("name the file with --config PATH"))?,
        None => String::new(),
    };
    let file = args.config.as_deref().unwrap_or(Path::new("the configuration"));
    let wrong =
        |error: cortex_core::config::ConfigError| CliError::new(format!("{} cannot be used", file.display())).note(error.to_string());
    let variables = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let mut config = GatewayConfig::parse(&text).and_then(|config| config.with_overrides(variables)).map_err(wrong)?;
    config.gateway.listen = args.listen.unwrap_or(config.gateway.listen);
    config.gateway.metrics_listen = args.metrics_listen.unwrap_or(config.gateway.metrics_listen);
    with_secrets(config)
}

/// What the configuration leaves to files of their own.
fn with_secrets(mut config: GatewayConfig) -> Result<GatewayConfig> {
    let read = |key: &str, path: &Path| {
        std::fs::read_to_string(path)
            .map_err(|error| CliError::new(format!("cannot read {}: {error}", path.display())).note(format!("gateway.{key} names it")))
    };
    // What systemd hands over wins, as it does at the nodes.
    let credential = std::env::var_os("CREDENTIALS_DIRECTORY").map(|folder| Path::new(&folder).join("node-token"));
    if let Some(path) = credential.filter(|file| file.exists()).as_ref().or(config.gateway.node_token_file.as_ref()) {
        config.gateway.node_token = read("node_token_file", path)?.trim().to_owned();
    }
    match config.gateway.keys_file.clone() {
        Some(path) => {
            let text = read("keys_file", &path)?;
            config.with_keys(&text).map_err(|error| CliError::new(format!("{} cannot be used", path.display())).note(error.to_string()))
        }
        None => Ok(config),
    }
}

fn summary(config: &GatewayConfig) -> String {
    let count = |count: usize, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
    let neurons = count(config.neurons.len(), "neuron");
    let models = count(config.placement.models().count(), "placed model");
    let keys = match config.keys.len() {
        0 => "no keys: open to whoever reaches it".to_owned(),
        some => count(some, "key"),
    };
    format!("ok: listens on {}, metrics on {}, {neurons}, {models}, {keys}", config.gateway.listen, config.gateway.metrics_listen)
}

/// A socket at `address`; `flag` is the option that would choose another one.
pub(crate) async fn listen(flag: &str, address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| cannot_listen(flag, address, &error))
}

/// Why there is no socket at `address`, and what to do.
pub(crate) fn cannot_listen(flag: &str, address: SocketAddr, error: &std::io::Error) -> CliError {
    let wrong = CliError::new(format!("cannot listen on {address}: {error}"));
    match error.kind() {
        std::io::ErrorKind::AddrInUse => wrong
            .note("another cortex may be running: `cortex status` shows it")
            .note(format!("choose another address with {flag} HOST:PORT")),
        _ => wrong.note(format!("choose an address of this machine with {flag} HOST:PORT")),
    }
}

/// Tells systemd, where it started us.
pub(crate) fn notify(state: NotifyState) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}

/// Waits for `drain`, or for someone who does not want to wait.
pub(crate) async fn stop(signals: &mut StopSignals, drain: impl Future<Output = Drained>) -> Result<()> {
    let early = CliError::new("stopped before open requests ended").with_status(Status::Interrupted);
    tokio::select! {
        drained = drain => match drained.cut {
            0 => Ok(()),
            cut => Err(CliError::new(format!("{cut} open connections were cut at the drain deadline")).note("timeouts.drain_ms_max sets it")),
        },
        () = signals.next() => Err(early),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn args(text: &str) -> (tempfile::NamedTempFile, ServeArgs) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let config = Some(file.path().to_owned());
        (file, ServeArgs { config, listen: Some("127.0.0.1:1".parse().unwrap()), metrics_listen: None, placement: None, check: true })
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let (_file, args) = args("[gateway]\nlisten = \"0.0.0.0:2\"\n[[neurons]]\nname = \"a\"\nendpoint = \"http://a:13131\"\n");
        let config = configuration(&args).unwrap();
        insta::assert_snapshot!(summary(&config), @"ok: listens on 127.0.0.1:1, metrics on 0.0.0.0:31314, 1 neuron, 0 placed models, no keys: open to whoever reaches it");
    }

    #[test]
    fn a_mistake_in_the_file_is_shown_with_its_line() {
        let (file, args) = args("[gateway]\nlisten_to = \"0.0.0.0:2\"\n");
        let error = configuration(&args).unwrap_err().to_string().replace(&file.path().display().to_string(), "FILE");
        insta::assert_snapshot!(error, @r"
        error: FILE cannot be used
          = line 2, `listen_to`: unknown field `listen_to`, expected one of `listen`, `metrics_listen`, `keep_billing_header`, `tls`, `ca`, `node_token`, `node_token_file`, `keys_file`, `placement_file`, `cors_origins`
        ");
    }

    #[test]
    fn keys_may_stand_in_a_file_of_their_own() {
        let mut keys = tempfile::NamedTempFile::new().unwrap();
        write!(keys, "[[keys]]\nname = \"a\"\nsha256 = \"{}\"\n", "0f".repeat(32)).unwrap();
        let (_file, args) = args(&format!("[gateway]\nkeys_file = {:?}\n", keys.path()));
        assert_eq!(configuration(&args).unwrap().keys[0].name, "a");
        writeln!(keys, "amdin = true").unwrap();
        let error = configuration(&args).unwrap_err().to_string().replace(&keys.path().display().to_string(), "FILE");
        insta::assert_snapshot!(error, @r"
        error: FILE cannot be used
          = line 4, `amdin`: unknown field `amdin`, expected one of `name`, `sha256`, `admin`, `models`, `requests_per_minute_max`, `tokens_per_minute_max`, `requests_open_max`, `priority`
        ");
    }

    #[tokio::test]
    async fn a_port_in_use_is_named_with_the_flag_that_changes_it() {
        let taken = listen("--listen", "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = listen("--listen", address).await.unwrap_err().to_string().replace(&address.to_string(), "ADDRESS");
        insta::assert_snapshot!(error, @r"
        error: cannot listen on ADDRESS: Address already in use (os error 98)
          = another cortex may be running: `cortex status` shows it
          = choose another address with --listen HOST:PORT
        ");
    }
}
