//! `cortex doctor`: what would keep a configuration from serving, found before anybody asks.

use std::time::{Duration, SystemTime};

use cortex_core::config::{GatewayConfig, NeuronEntry};
use cortex_core::{Discovery, Health, ModelReport};
use cortex_net::{Trust, Validity};
use serde::Deserialize;

use crate::client::Gateway;
use crate::error::{CliError, Result, Status};
use crate::output;
use crate::serve::{ServeArgs, setup};
use crate::style::{Ink, Style};

/// Clocks that differ by more make logs hard to read together.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(5);

/// A certificate that counts no longer than this should be renewed.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 86_400);

/// One thing that was looked at.
#[derive(Debug)]
struct Finding {
    level: Level,
    about: String,
    says: String,
}

impl Finding {
    fn of_tls(level: Level, says: String) -> Self {
        Self { level, about: "TLS".into(), says }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Good,
    Doubtful,
    Bad,
}

/// Says what was found; `Degraded` when something would not work.
pub(crate) async fn run(args: ServeArgs) -> Result<Option<Status>> {
    let setup = setup(&args)?;
    let config = setup.config();
    let mut findings = about_config(config);
    let trust = setup.trust().unwrap_or_else(|error| {
        findings.push(Finding::of_tls(Level::Bad, error.to_string()));
        Trust::public()
    });
    match setup.identity() {
        Ok(None) => {}
        Ok(Some(identity)) => findings.push(about_certificate(identity.validity(), time_of_day())),
        Err(error) => findings.push(Finding::of_tls(Level::Bad, error.to_string())),
    }
    for neuron in &config.neurons {
        findings.extend(about_node(config, neuron, trust.clone()).await);
    }
    output::text(&render(&findings, Style::of_stdout()))?;
    let worst = findings.iter().map(|finding| finding.level).max();
    Ok((worst == Some(Level::Bad)).then_some(Status::Degraded))
}

fn about_config(config: &GatewayConfig) -> Vec<Finding> {
    let find = |level, says: String| Finding { level, about: "configuration".into(), says };
    let mut findings = vec![find(Level::Good, format!("understood; listens on {}", config.gateway.listen))];
    if config.neurons.is_empty() {
        findings.push(find(Level::Bad, "names no node: add a [[neurons]] entry".into()));
    }
    let loopback = config.gateway.listen.ip().is_loopback();
    match (config.keys.len(), config.keys.iter().any(|key| key.admin)) {
        (0, _) if loopback => {}
        (0, _) => findings.push(find(Level::Doubtful, "no [[keys]]: whoever reaches it may use and administer it".into())),
        (count, true) => findings.push(find(Level::Good, format!("{count} keys"))),
        (_, false) => {
            findings.push(find(Level::Doubtful, "no key has admin = true: nobody may use /admin, `cortex status` included".into()));
        }
    }
    findings
}

/// How long the gateway's own certificate counts.
fn about_certificate(validity: Option<Validity>, now: SystemTime) -> Finding {
    let date = |at: SystemTime| httpdate::fmt_http_date(at);
    let days = |span: Duration| span.as_secs() / 86_400;
    match validity {
        None => Finding::of_tls(Level::Doubtful, "the certificate cannot be read for its dates".into()),
        Some(Validity { until, .. }) if until < now => {
            Finding::of_tls(Level::Bad, format!("the certificate expired on {}: renew it; clients refuse it", date(until)))
        }
        Some(Validity { from, .. }) if from > now => {
            Finding::of_tls(Level::Bad, format!("the certificate counts from {} on only: is our clock right?", date(from)))
        }
        Some(Validity { until, .. }) => {
            let left = until.duration_since(now).unwrap_or_default();
            let says = format!("the certificate counts until {}, {} days from now", date(until), days(left));
            if left < EXPIRES_SOON {
                Finding::of_tls(Level::Doubtful, format!("{says}: renew it"))
            } else {
                Finding::of_tls(Level::Good, says)
            }
        }
    }
}

async fn about_node(config: &GatewayConfig, neuron: &NeuronEntry, trust: Trust) -> Vec<Finding> {
    #[derive(Deserialize)]
    struct Models {
        models: Vec<ModelReport>,
    }
    let find = |level, says: String| Finding { level, about: neuron.name.to_string(), says };
    let token = Some(config.gateway.node_token.clone()).filter(|token| !token.is_empty());
    let node = match Gateway::new(neuron.endpoint.as_str(), token, trust) {
        Ok(node) => node,
        Err(error) => return vec![find(Level::Bad, first_line(&error))],
    };
    let asked = async {
        let (discovery, _): (Discovery, _) = node.get("/discovery").await?;
        let (health, _): (Health, _) = node.get("/health").await?;
        let (models, _): (Models, _) = node.get("/models").await?;
        Ok::<_, CliError>((discovery, health, models.models, node.clock("/health").await?))
    };
    let (discovery, health, models, date) = match asked.await {
        Ok(answers) => answers,
        Err(error) => return vec![find(Level::Bad, first_line(&error))],
    };
    let mut findings = vec![find(Level::Good, format!("answers at {}; {} models", neuron.endpoint, models.len()))];
    let own = env!("CARGO_PKG_VERSION");
    if discovery.version != own {
        findings.push(find(Level::Doubtful, format!("is neuron {}, and this is cortex {own}", discovery.version)));
    }
    if !health.ready {
        findings.push(find(Level::Doubtful, "drains: it takes nothing new".into()));
    }
    for device in health.devices.iter().filter_map(|device| Some((&device.name, device.poisoned.as_ref()?))) {
        findings.push(find(Level::Bad, format!("{} refuses work until the daemon restarts: {}", device.0, device.1)));
    }
    if let Some(apart) = date.and_then(|date| apart(&date, time_of_day())).filter(|apart| *apart > CLOCKS_APART_MAX) {
        findings.push(find(Level::Doubtful, format!("its clock and ours are {} s apart", apart.as_secs())));
    }
    for placed in config.placement.models().filter(|placed| placed.nodes.contains(&neuron.name)) {
        let id = &placed.spec.model_id;
        if placed.spec.source.is_none() && !models.iter().any(|report| report.id == *id) {
            findings.push(find(
                Level::Doubtful,
                format!("does not know `{id}`, which is placed on it without a source; it will be asked of the hub"),
            ));
        }
    }
    findings
}

#[expect(clippy::disallowed_methods, reason = "certificates and other hosts' clocks are held against the time of day")]
fn time_of_day() -> SystemTime {
    SystemTime::now()
}

/// The difference between an HTTP date and our clock.
fn apart(date: &str, ours: SystemTime) -> Option<Duration> {
    let theirs = httpdate::parse_http_date(date).ok()?;
    ours.duration_since(theirs).or_else(|_| theirs.duration_since(ours)).ok()
}

fn first_line<E: std::fmt::Display>(error: &E) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

fn render(findings: &[Finding], style: Style) -> String {
    let width = findings.iter().map(|finding| finding.about.chars().count()).max().unwrap_or(0);
    let line = |finding: &Finding| {
        let (ink, mark) = match finding.level {
            Level::Good => (Ink::Good, "ok  "),
            Level::Doubtful => (Ink::Warn, "note"),
            Level::Bad => (Ink::Bad, "bad "),
        };
        format!("{} {:width$}  {}\n", style.paint(ink, mark), finding.about, finding.says)
    };
    findings.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_is_aligned_and_graded() {
        let config = GatewayConfig::parse("[gateway]\nlisten = \"0.0.0.0:1\"\n").unwrap();
        insta::assert_snapshot!(render(&about_config(&config), Style::PLAIN), @r"
        ok   configuration  understood; listens on 0.0.0.0:1
        bad  configuration  names no node: add a [[neurons]] entry
        note configuration  no [[keys]]: whoever reaches it may use and administer it
        ");
    }

    #[test]
    fn a_certificate_is_graded_by_what_is_left_of_it() {
        let day = |n: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(20_000 * 86_400 + n * 86_400);
        let found = |from, until| about_certificate(Some(Validity { from: day(from), until: day(until) }), day(100));
        let findings = [found(50, 99), found(101, 200), found(50, 110), found(50, 190), about_certificate(None, day(100))];
        insta::assert_snapshot!(render(&findings, Style::PLAIN), @r"
        bad  TLS  the certificate expired on Sat, 11 Jan 2025 00:00:00 GMT: renew it; clients refuse it
        bad  TLS  the certificate counts from Mon, 13 Jan 2025 00:00:00 GMT on only: is our clock right?
        note TLS  the certificate counts until Wed, 22 Jan 2025 00:00:00 GMT, 10 days from now: renew it
        ok   TLS  the certificate counts until Sat, 12 Apr 2025 00:00:00 GMT, 90 days from now
        note TLS  the certificate cannot be read for its dates
        ");
    }

    #[test]
    fn clocks_are_compared_in_both_directions() {
        let at = |second: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        let found = [160, 40, 100].map(|second| apart(&httpdate::fmt_http_date(at(second)), at(100)));
        assert_eq!(found, [60, 60, 0].map(|seconds| Some(Duration::from_secs(seconds))));
        assert_eq!(apart("yesterday", at(100)), None);
    }
}
