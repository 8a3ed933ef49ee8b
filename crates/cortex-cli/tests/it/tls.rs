//! `cortex serve` behind TLS, as clients and those who renew certificates see it.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use neuron_api::mock::MockModel;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::serve::served_at;
use crate::support::{Fleet, Ran, command, run};

/// Certificate, key and authority in the files that the configuration names.
struct Files {
    folder: TempDir,
}

impl Files {
    fn new() -> Self {
        let files = Self { folder: TempDir::new().unwrap() };
        files.renew();
        files
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Another authority and another certificate in the same files.
    fn renew(&self) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let own_key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&own_key, &issuer).unwrap();
        for (name, text) in [("ca.pem", ca.pem()), ("cert.pem", own.pem()), ("key.pem", own_key.serialize_pem())] {
            std::fs::write(self.file(name), text).unwrap();
        }
    }

    fn configuration(&self, node: &str) -> PathBuf {
        let text = format!(
            "[gateway]\nlisten = \"127.0.0.1:0\"\nmetrics_listen = \"127.0.0.1:0\"\n[gateway.tls]\ncertificate = {:?}\nkey = {:?}\n\
             [[neurons]]\nname = \"mock\"\nendpoint = \"{node}\"\n",
            self.file("cert.pem"),
            self.file("key.pem")
        );
        std::fs::write(self.file("cortex.toml"), text).unwrap();
        self.file("cortex.toml")
    }
}

/// A process, and what it says.
struct Daemon {
    child: Child,
    told: UnboundedReceiver<String>,
}

impl Daemon {
    fn start(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let (tell, told) = unbounded_channel();
        let log = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || log.lines().map_while(Result::ok).for_each(|line| drop(tell.send(line))));
        Self { child, told }
    }

    async fn line_with(&mut self, wanted: &str) -> String {
        loop {
            let line = self.told.recv().await.expect("it is said before the process ends");
            if line.contains(wanted) {
                return line;
            }
        }
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_behind_tls_serves_and_takes_new_certificates_without_an_end() {
    let fleet = Fleet::start([MockModel::loaded("m").saying(["Good day."])]).await;
    let files = Files::new();
    let mut daemon = Daemon::start(command(&["serve", "--config", files.configuration(&fleet.node.endpoint()).to_str().unwrap()]));
    let address = served_at(&daemon.line_with(" addr=").await).unwrap();
    let url = format!("https://{address}");
    let ask = async |url: &str, ca: PathBuf| -> Ran {
        let command = command(&["chat", "--gateway", url, "--ca", ca.to_str().unwrap(), "Hello"]);
        tokio::task::spawn_blocking(move || run(command, "")).await.unwrap()
    };
    let (old, new) = (files.file("old.pem"), files.file("ca.pem"));
    std::fs::copy(&new, &old).unwrap();
    let ran = ask(&url, old.clone()).await;
    assert_eq!((ran.status, ran.out.as_str()), (0, "Good day.\n"), "{ran:?}");
    let plain = ask(&format!("http://{address}"), old.clone()).await;
    assert_eq!((plain.status, plain.out.as_str()), (3, ""), "{plain:?}");

    files.renew();
    daemon.signal("-HUP");
    daemon.line_with("configuration reloaded").await;
    let ran = ask(&url, new.clone()).await;
    assert_eq!((ran.status, ran.out.as_str()), (0, "Good day.\n"), "{ran:?}");
    let refused = ask(&url, old).await;
    assert!(refused.status == 3 && refused.err.contains("invalid peer certificate"), "{refused:?}");

    std::fs::write(files.file("key.pem"), "no key").unwrap();
    daemon.signal("-HUP");
    let why = daemon.line_with("the configuration is unchanged").await;
    assert!(why.contains("holds no private key"), "{why}");
    let ran = ask(&url, new).await;
    assert_eq!((ran.status, ran.out.as_str()), (0, "Good day.\n"), "the certificate in use stays: {ran:?}");

    daemon.signal("-TERM");
    assert!(tokio::task::spawn_blocking(move || daemon.child.wait()).await.unwrap().unwrap().success());
}
