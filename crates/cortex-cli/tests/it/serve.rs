//! `cortex serve` as a service manager sees it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use neuron_api::mock::MockModel;

use crate::support::{Fleet, command, run};

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_process_serves_until_sigterm_and_ends_well() {
    let fleet = Fleet::start([MockModel::loaded("chat-model").saying(["Good day."])]).await;
    let mut serve = command(&["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]);
    serve.env("CORTEX_NEURONS", format!("mock={}", fleet.node.endpoint()));
    let mut child = serve.stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());

    // The log must be read to its end, or the process could block on writing it.
    let (found, address) = tokio::sync::oneshot::channel();
    let reading = tokio::task::spawn_blocking(move || {
        let mut found = Some(found);
        for line in log.lines().map_while(Result::ok) {
            if let Some(address) = served_at(&line)
                && let Some(found) = found.take()
            {
                found.send(address).unwrap();
            }
        }
    });
    let url = format!("http://{}", address.await.unwrap());
    let ran = tokio::task::spawn_blocking(move || run(command(&["chat", "--gateway", &url, "Hello"]), "")).await.unwrap();
    assert_eq!((ran.status, ran.out.as_str()), (0, "Good day.\n"), "{ran:?}");

    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    assert!(child.wait().unwrap().success());
    reading.await.unwrap();
}

/// The address in the line that says where the gateway serves.
fn served_at(line: &str) -> Option<String> {
    let address = line.split(" addr=").nth(1)?.split(' ').next()?;
    Some(address.to_owned())
}

#[test]
fn a_configuration_can_be_checked_without_serving() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cortex.toml");
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        run(command(&["serve", "--check", "--config", file.to_str().unwrap()]), "")
    };
    let good = check("[[neurons]]\nname = \"beast\"\nendpoint = \"http://beast:13131\"\n");
    assert_eq!(
        (good.status, good.out.as_str()),
        (0, "ok: listens on 0.0.0.0:31313, metrics on 0.0.0.0:31314, 1 neuron, 0 placed models\n")
    );
    let bad = check("[gateway]\nlisten = 5\n");
    assert!(bad.status == 1 && bad.err.contains("line 2"), "{bad:?}");
}
