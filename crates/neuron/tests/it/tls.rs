//! A node behind TLS, as gateways, its own watchdog and those who renew certificates see it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use cortex_core::ModelSpec;
use cortex_net::{DialWaits, Dialer, Trust};
use neuron::config::{HubConfig, TlsConfig};
use neuron::pulse::Pulse;
use neuron::{Daemon, NeuronConfig};
use neuron_api::{Client, ClientTimeouts};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::json;

use crate::scripted::Scripted;

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Another authority, a certificate of it, and its key.
fn renew(folder: &Path) {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let ca = params.self_signed(&key).expect("an authority");
    let issuer = Issuer::new(params, key);
    let own_key = KeyPair::generate().expect("a key");
    let own =
        CertificateParams::new(vec!["127.0.0.1".to_owned()]).and_then(|params| params.signed_by(&own_key, &issuer)).expect("a certificate");
    for (name, text) in [("ca.pem", ca.pem()), ("cert.pem", own.pem()), ("key.pem", own_key.serialize_pem())] {
        std::fs::write(folder.join(name), text).expect("a scratch file");
    }
}

fn client(addr: SocketAddr, scheme: &str, ca: &Path) -> Client {
    let trust = Arc::new(ArcSwap::from_pointee(Trust::of_file(ca).expect("an authority")));
    Client::over(&format!("{scheme}://{addr}"), ClientTimeouts::default(), Dialer::new(trust, DialWaits::connecting(PATIENCE)))
}

#[tokio::test]
async fn a_node_behind_tls_serves_and_takes_new_certificates_without_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let [ca, old_ca, certificate, key] = ["ca.pem", "old.pem", "cert.pem", "key.pem"].map(|name| folder.path().join(name));
    renew(folder.path());
    std::fs::copy(&ca, &old_ca).unwrap();
    let source = folder.path().to_str().map(str::to_owned);
    let config = NeuronConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        models: vec![ModelSpec { source, ..ModelSpec::new("a") }],
        hub: HubConfig { offline: true, ..HubConfig::default() },
        tls: Some(TlsConfig { certificate, key: key.clone() }),
        ..NeuronConfig::default()
    };
    let mut daemon = Daemon::start_with(config.clone(), Scripted::new()).await.unwrap();
    assert!(daemon.speaks_tls());
    Pulse::new(daemon.addr, true, PATIENCE).beat().await.expect("its own watchdog need not know the authority");

    let believing = client(daemon.addr, "https", &ca);
    assert!(believing.load(&ModelSpec::new("a")).await.unwrap().is_loaded());
    let hello = json!({ "model": "a", "messages": [{ "role": "user", "content": "hello" }] });
    let answer: serde_json::Value = believing.post("/v1/chat/completions", &hello).await.unwrap();
    assert_eq!(answer["choices"][0]["message"]["content"], "[]");
    assert!(client(daemon.addr, "http", &ca).health().await.is_err(), "nothing is said in the clear");

    renew(folder.path());
    assert_eq!(daemon.reload(config.clone()), Vec::<&str>::new());
    assert!(client(daemon.addr, "https", &ca).health().await.is_ok());
    let refused = client(daemon.addr, "https", &old_ca).health().await.unwrap_err().to_string();
    assert!(refused.contains("invalid peer certificate"), "{refused}");
    assert!(believing.health().await.is_ok(), "a connection that is open goes on");

    std::fs::write(&key, "no key").unwrap();
    daemon.reload(config);
    assert!(client(daemon.addr, "https", &ca).health().await.is_ok(), "the certificate in use stays");
    daemon.shutdown().await;
}
