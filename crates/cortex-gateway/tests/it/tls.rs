//! TLS on both legs: from clients to the gateway, and from it to nodes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use cortex_core::NodeState;
use cortex_core::config::{Endpoint, GatewayConfig, TlsSection};
use cortex_gateway::Gateway;
use cortex_net::{CertificateFiles, DialWaits, Dialer, Identity, Serving, Trust};
use http::Version;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use neuron_api::ApiLimits;
use neuron_api::mock::{MockConfig, MockModel, MockNeuron};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::rig::{TestClient, chat, config};

/// An authority that made a certificate for this machine, with all files.
struct Authority {
    folder: TempDir,
}

impl Authority {
    fn new() -> Self {
        let authority = Self { folder: TempDir::new().unwrap() };
        authority.renew();
        authority
    }

    /// Another authority and another certificate in the same files.
    fn renew(&self) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let own_key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let own = CertificateParams::new(names).unwrap().signed_by(&own_key, &issuer).unwrap();
        for (name, text) in [("ca.pem", ca.pem()), ("cert.pem", own.pem()), ("key.pem", own_key.serialize_pem())] {
            std::fs::write(self.file(name), text).unwrap();
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn section(&self) -> TlsSection {
        TlsSection { certificate: self.file("cert.pem"), key: self.file("key.pem") }
    }
}

/// The body of `GET https://ADDR/version`, or why there is none.
async fn version(addr: SocketAddr, ca: &Path) -> Result<String, String> {
    let trust = Arc::new(ArcSwap::from_pointee(Trust::of_file(ca).unwrap()));
    let client: Client<Dialer, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).build(Dialer::new(trust, DialWaits::connecting(Duration::from_secs(60))));
    let answer = client.get(format!("https://{addr}/version").parse().unwrap()).await;
    let answer = answer.map_err(|error| neuron_api::client::causes(&error))?;
    Ok(String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

#[tokio::test]
async fn clients_connect_with_tls_and_a_new_certificate_is_taken_on_reload() {
    let (authority, folder) = (Authority::new(), TempDir::new().unwrap());
    let old_ca = folder.path().join("old.pem");
    std::fs::copy(authority.file("ca.pem"), &old_ca).unwrap();
    let mut config = config([]);
    config.gateway.tls = Some(authority.section());
    let gateway = Gateway::start(config.clone()).await.unwrap();
    assert!(version(gateway.addr, &old_ca).await.unwrap().contains("cortex"));

    authority.renew();
    gateway.reload(config.clone()).unwrap();
    assert!(version(gateway.addr, &authority.file("ca.pem")).await.unwrap().contains("cortex"));
    let error = version(gateway.addr, &old_ca).await.unwrap_err();
    assert!(error.contains("invalid peer certificate"), "{error}");

    std::fs::write(authority.file("key.pem"), "no key").unwrap();
    let error = gateway.reload(config).unwrap_err().to_string();
    assert!(error.contains("key.pem holds no private key"), "{error}");
    assert!(version(gateway.addr, &authority.file("ca.pem")).await.is_ok(), "the certificate in use stays");
    assert_eq!(gateway.shutdown().await.cut, 0);
}

#[tokio::test]
async fn clients_may_speak_http2() {
    let authority = Authority::new();
    let node = MockNeuron::new(MockConfig::new([MockModel::loaded("m")])).serve().await.unwrap();
    let mut config = config([node.addr]);
    config.gateway.tls = Some(authority.section());
    let gateway = Gateway::start(config).await.unwrap();

    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.file("ca.pem")).unwrap()).unwrap();
    let mut tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let socket = tokio::net::TcpStream::connect(gateway.addr).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let secured = TlsConnector::from(Arc::new(tls)).connect(name, socket).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(secured)).await.unwrap();
    tokio::spawn(connection);
    // Many at once on the one connection, streams among them.
    let asked = (0..20).map(|number| {
        let mut body = chat("m", "one two three");
        body["stream"] = (number % 2 == 0).into();
        let request = http::Request::post("https://localhost/v1/chat/completions").body(Full::new(Bytes::from(body.to_string())));
        let answer = sender.send_request(request.unwrap());
        async move {
            let answer = answer.await.unwrap();
            assert_eq!((answer.status().as_u16(), answer.version()), (200, Version::HTTP_2));
            String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
        }
    });
    for (number, text) in futures::future::join_all(asked).await.into_iter().enumerate() {
        let end = if number % 2 == 0 { "data: [DONE]\n\n" } else { "}" };
        assert!(text.contains("three") && text.ends_with(end), "{text}");
    }
}

/// A node behind TLS.
async fn secured_node(authority: &Authority) -> SocketAddr {
    let TlsSection { certificate, key } = authority.section();
    let serving = Serving {
        connections_max: 100,
        head_wait_max: Duration::from_secs(60),
        identity: Some(Arc::new(Identity::read(CertificateFiles { certificate, key }).unwrap())),
        stop: CancellationToken::new(),
        kill: CancellationToken::new(),
        connections: TaskTracker::new(),
    };
    let mock = MockNeuron::new(MockConfig::new([MockModel::loaded("m")]));
    let router = neuron_api::router(Arc::new(mock), ApiLimits::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(serving.run(listener, TowerToHyperService::new(router)));
    addr
}

#[tokio::test]
async fn a_node_behind_tls_serves_where_its_authority_is_believed() {
    let (authority, other) = (Authority::new(), Authority::new());
    let addr = secured_node(&authority).await;
    let to = |ca: Option<PathBuf>, own: Option<PathBuf>| -> GatewayConfig {
        let mut config = config([addr]);
        config.neurons[0].endpoint = Endpoint::parse(&format!("https://{addr}")).unwrap();
        (config.gateway.ca, config.neurons[0].ca) = (ca, own);
        config
    };
    let (right, wrong) = (authority.file("ca.pem"), other.file("ca.pem"));
    for (ca, own, serves) in [
        (Some(right.clone()), None, true),
        (Some(wrong.clone()), Some(right.clone()), true),
        (Some(right.clone()), Some(wrong.clone()), false),
        (Some(wrong.clone()), None, false),
        (None, None, false),
    ] {
        let gateway = Gateway::start(to(ca.clone(), own.clone())).await.unwrap();
        let reply = TestClient::new(gateway.addr).chat(&chat("m", "hello")).await;
        assert_eq!(reply.status.is_success(), serves, "{ca:?} {own:?}: {}", reply.text());
        match &gateway.fleet().nodes[0].state {
            NodeState::Ready => assert!(serves),
            NodeState::Ejected { reason, .. } => assert!(!serves && reason.contains("invalid peer certificate"), "{reason}"),
            state => panic!("{state:?}"),
        }
    }
    let error = Gateway::start(to(Some("/nowhere/ca.pem".into()), None)).await.unwrap_err().to_string();
    assert!(error.starts_with("cannot read /nowhere/ca.pem"), "{error}");
}

#[tokio::test]
async fn a_reload_changes_whom_the_gateway_believes() {
    let (authority, other) = (Authority::new(), Authority::new());
    let addr = secured_node(&authority).await;
    let mut config = config([addr]);
    config.neurons[0].endpoint = Endpoint::parse(&format!("https://{addr}")).unwrap();
    config.gateway.ca = Some(other.file("ca.pem"));
    config.timeouts.probe_ms = cortex_core::config::Millis::new(20);
    let gateway = Gateway::start(config.clone()).await.unwrap();
    assert!(matches!(gateway.fleet().nodes[0].state, NodeState::Ejected { .. }));
    config.gateway.ca = Some(authority.file("ca.pem"));
    assert_eq!(gateway.reload(config).unwrap().after_restart, Vec::<&str>::new());
    crate::rig::until(async || gateway.fleet().nodes[0].state == NodeState::Ready).await;
    assert!(TestClient::new(gateway.addr).chat(&chat("m", "hello")).await.status.is_success());
}
