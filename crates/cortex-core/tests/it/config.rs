//! What `cortex.toml` and `CORTEX_*` may say, and how they are refused.

use cortex_core::config::{Endpoint, GatewayConfig, Place};
use cortex_core::model::ModelId;
use proptest::prelude::*;

const FULL: &str = r#"
[gateway]
listen = "127.0.0.1:8000"

[limits]
body_bytes_max = 1024

[timeouts]
keep_alive_ms = 500

[[neurons]]
name = "beast"
endpoint = "http://Beast.internal:13131/"

[[neurons]]
name = "benjy"
endpoint = "http://[::1]:13131"

[[models]]
id = "Qwen/Qwen3-8B"
dtype = "bf16"
neurons = ["benjy"]

[aliases]
default = "Qwen/Qwen3-8B"
"#;

#[test]
fn a_file_sets_what_it_names_and_leaves_the_rest() {
    let config = GatewayConfig::parse(FULL).unwrap();
    let defaults = GatewayConfig::default();
    assert_eq!(config.gateway.listen, "127.0.0.1:8000".parse().unwrap());
    assert_eq!(config.gateway.metrics_listen, defaults.gateway.metrics_listen);
    assert_eq!(config.limits.body_bytes_max.get(), 1024);
    assert_eq!(config.timeouts.keep_alive_ms.duration().as_millis(), 500);
    assert_eq!(config.neurons[0].endpoint.as_str(), "http://beast.internal:13131");
    assert_eq!(config.neurons[1].endpoint.authority(), "[::1]:13131");
    let model = ModelId::from("Qwen/Qwen3-8B");
    assert_eq!(config.placement.alias_target("default"), Some(&model));
    assert_eq!(config.placement.spec(&model).dtype.as_deref(), Some("bf16"));
    assert!(config.placement.places(&model, &"benjy".into()));
    assert!(config.placement.forbids(&model, &"beast".into()));
    assert_eq!(GatewayConfig::parse("").unwrap(), defaults);
}

#[test]
fn every_mistake_names_its_line_its_key_and_what_is_wrong() {
    let key = format!("[[keys]]\nname = \"a\"\nsha256 = \"{}\"\n", "0f".repeat(32));
    let neuron = "[[neurons]]\nname = \"a\"\nendpoint = \"http://a:1\"\n";
    let cases: &[(String, usize, &str, &str)] = &[
        ("[gateway]\nlistne = \"x\"".into(), 2, "listne", "unknown field `listne`"),
        ("[gatway]\nlisten = \"x\"".into(), 1, "[gatway]", "unknown field `gatway`"),
        ("[gateway]\n\nlisten = 5".into(), 3, "listen", "socket address"),
        ("[limits]\ntries_max = 0".into(), 2, "tries_max", "nonzero"),
        ("[limits]\ntries_max = -1".into(), 2, "tries_max", "nonzero"),
        ("[timeouts]\nidle_ms_max = \"1s\"".into(), 2, "idle_ms_max", "nonzero"),
        ("[gateway\n".into(), 1, "[gateway", "table"),
        ("[[neurons]]\nname = \"a\"".into(), 1, "[[neurons]]", "missing field `endpoint`"),
        ("[[neurons]]\nname = \"\"\nendpoint = \"http://a:1\"".into(), 2, "name", "needs a name"),
        ("[[neurons]]\nname = \"a\"\nendpoint = \"ftp://a:1\"".into(), 3, "endpoint", "http:// or https://"),
        (format!("{neuron}ca = \"/ca.pem\""), 4, "ca", "https://"),
        ("[gateway.tls]\nkey = \"k\"".into(), 1, "[gateway.tls]", "missing field `certificate`"),
        ("[[neurons]]\nname = \"a\"\nendpoint = \"http://a\"".into(), 3, "endpoint", "13131 by default"),
        ("[[neurons]]\nname = \"a\"\nendpoint = \"http://a:1/v1\"".into(), 3, "endpoint", "without a path"),
        (format!("{neuron}{neuron}"), 5, "name", "already defined on line 2"),
        (format!("{neuron}{}", neuron.replace("\"a\"", "\"b\"")), 6, "endpoint", "the node `a` has this endpoint already"),
        ("[[models]]\nid = \"m\"\nneurons = [\"q\"]".into(), 3, "neurons", "no [[neurons]] entry is named `q`"),
        ("[[models]]\nid = \"m\"\n[[models]]\nid = \"m\"".into(), 4, "id", "already defined on line 2"),
        ("[[models]]\nid = \"m\"\ndtpye = \"f16\"".into(), 3, "dtpye", "unknown field `dtpye`"),
        ("[[models]]\nid = \"m\"\n[aliases]\nm = \"n\"".into(), 4, "m", "is the model of line 2"),
        ("[[models]]\nid = \"m\"\nfallbacks = [\"m\"]".into(), 3, "fallbacks", "cannot stand in"),
        ("[[models]]\nid = \"m\"\nreplicas = { min = 2, max = 1 }".into(), 2, "id", "at least replicas.min"),
        ("[[models]]\nid = \"m\"\nreplicas = { min = 1 }".into(), 2, "id", "on demand"),
        ("[[models]]\nid = \"m\"\nresidency = \"often\"".into(), 3, "residency", "unknown variant `often`"),
        ("[[keys]]\nname = \"a\"\nsha256 = \"12\"".into(), 3, "sha256", "64 hexadecimal digits"),
        (format!("{key}{key}"), 4, "[[keys]]", "has the name or the hash of the key `a`"),
        (format!("{key}tokens_per_minute_mux = 1"), 4, "tokens_per_minute_mux", "unknown field"),
        ("[eviction]\nstrategy = \"fifo\"".into(), 2, "strategy", "unknown variant `fifo`"),
        ("[telemetry]\notlp_endpoint = \"collector\"".into(), 2, "otlp_endpoint", "http://host:port"),
        ("[aliases]\na = \"b\"\nb = \"m\"".into(), 2, "a", "itself an alias"),
    ];
    for (text, line, key, says) in cases {
        let error = GatewayConfig::parse(text).expect_err(text);
        assert_eq!(error.place, Place::Line { line: *line, key: (*key).into() }, "{text}\n{error}");
        assert!(error.message.contains(says), "{text}\n{error}");
    }
}

#[test]
fn variables_override_the_file_and_are_checked_like_it() {
    let vars = |pairs: &[(&str, &str)]| pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Vec<_>>();
    let config = GatewayConfig::parse(FULL).unwrap();
    let changed = config
        .clone()
        .with_overrides(vars(&[
            ("CORTEX_GATEWAY_LISTEN", "[::]:9"),
            ("CORTEX_TIMEOUTS_IDLE_MS_MAX", "7"),
            ("CORTEX_GATEWAY_KEEP_BILLING_HEADER", "true"),
            ("CORTEX_NEURONS", "a=http://a:1, b=http://b:1"),
            ("CORTEX_TELEMETRY_OTLP_ENDPOINT", "http://collector:4318"),
            ("CORTEX_URL", "not a setting of the gateway"),
            ("PATH", "/bin"),
        ]))
        .unwrap();
    assert_eq!(changed.gateway.listen, "[::]:9".parse().unwrap());
    assert_eq!(changed.timeouts.idle_ms_max.duration().as_millis(), 7);
    assert!(changed.gateway.keep_billing_header);
    assert!(changed.telemetry.otlp_endpoint.is_some());
    assert_eq!(changed.neurons.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(changed.limits, config.limits);

    let refused = [
        ("CORTEX_GATEWAY_LISTNE", "1", "unknown field `listne`"),
        ("CORTEX_LIMITS_TRIES_MAX", "many", "nonzero"),
        ("CORTEX_NEURONS", "a", "name=http://host:port"),
        ("CORTEX_NEURONS", "a=http://a:1,a=http://b:1", "has the name or the endpoint"),
    ];
    for (name, value, says) in refused {
        let error = config.clone().with_overrides(vars(&[(name, value)])).expect_err(name);
        assert_eq!(error.place, Place::Variable(name.into()));
        assert!(error.message.contains(says), "{error}");
    }
}

#[test]
fn an_address_is_an_endpoint() {
    let endpoint = Endpoint::from("127.0.0.1:13131".parse::<std::net::SocketAddr>().unwrap());
    assert_eq!(Endpoint::parse("http://127.0.0.1:13131"), Ok(endpoint));
}

/// A file whose lines were dropped, doubled, swapped, cut, or replaced by anything.
fn mistyped() -> impl Strategy<Value = String> {
    let change = (any::<prop::sample::Index>(), 0..5u8, any::<prop::sample::Index>(), ".{0,40}");
    proptest::collection::vec(change, 1..6).prop_map(|changes| {
        let mut lines: Vec<String> = FULL.lines().map(str::to_owned).collect();
        for (at, kind, other, anything) in changes {
            let (at, other) = (at.index(lines.len()), other.index(lines.len()));
            match kind {
                0 if lines.len() > 1 => drop(lines.remove(at)),
                1 => lines.insert(other, lines[at].clone()),
                2 => lines.swap(at, other),
                3 => lines[at] = lines[at].chars().take(anything.len()).collect(),
                _ => lines[at] = anything,
            }
        }
        lines.join("\n")
    })
}

proptest! {
    #[test]
    fn any_mistake_is_told_with_a_line_of_the_file(text in mistyped()) {
        if let Err(error) = GatewayConfig::parse(&text) {
            let Place::Line { line, .. } = error.place else { panic!("{error}") };
            prop_assert!((1..=text.lines().count() + 1).contains(&line), "{}", error);
            prop_assert!(!error.message.is_empty());
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in "(?s).{0,200}") {
        let _ = GatewayConfig::parse(&text);
        let _ = GatewayConfig::default().with_keys(&text);
        let _ = Endpoint::parse(&text);
        let _ = GatewayConfig::default().with_overrides([("CORTEX_NEURONS".to_owned(), text.clone()), ("CORTEX_LIMITS_TRIES_MAX".to_owned(), text)]);
    }
}
