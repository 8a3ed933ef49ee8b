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

#[tokio::test(flavor = "multi_thread")]
async fn sighup_takes_over_a_good_configuration_and_keeps_the_old_one_over_a_bad_one() {
    let fleet = Fleet::start([MockModel::loaded("m").saying(["Good day."])]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cortex.toml");
    let write = |aliases: &str| {
        let endpoint = fleet.node.endpoint();
        let neuron = format!("[[neurons]]\nname = \"mock\"\nendpoint = \"{endpoint}\"\n");
        std::fs::write(&file, format!("{neuron}[aliases]\n{aliases}")).unwrap();
    };
    write("");
    let mut serve = command(&["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--config", file.to_str().unwrap()]);
    let mut child = serve.stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    let (lines, mut told) = tokio::sync::mpsc::unbounded_channel();
    let reading = tokio::task::spawn_blocking(move || log.lines().map_while(Result::ok).for_each(|line| drop(lines.send(line))));
    let mut line_with = async |wanted: &str| loop {
        let line = told.recv().await.unwrap();
        if line.contains(wanted) {
            return line;
        }
    };
    let url = format!("http://{}", served_at(&line_with(" addr=").await).unwrap());
    let pid = child.id().to_string();
    let hup = || assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    let ask = async |model: &'static str| {
        let url = url.clone();
        tokio::task::spawn_blocking(move || run(command(&["chat", "--gateway", &url, "--model", model, "Hello"]), "").status).await.unwrap()
    };
    assert_eq!(ask("fast").await, 1);
    write("fast = \"m\"\n");
    hup();
    line_with("configuration reloaded").await;
    assert_eq!(ask("fast").await, 0);
    write("fast = 7\n");
    hup();
    let why = line_with("the configuration is unchanged").await;
    assert!(why.contains("cannot be used"), "{why}");
    assert_eq!(ask("fast").await, 0);
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(child.wait().unwrap().success());
    reading.await.unwrap();
}

/// The address in the line that says where the gateway serves.
pub(crate) fn served_at(line: &str) -> Option<String> {
    let address = line.split(" addr=").nth(1)?.split(' ').next()?;
    Some(address.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_tells_a_node_that_answers_from_one_that_does_not() {
    let fleet = Fleet::start([MockModel::loaded("m")]).await;
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (neurons, status, says) in [
        (format!("mock={}", fleet.node.endpoint()), 0, "ok   mock           answers at"),
        (format!("mock={},gone=http://{dead}", fleet.node.endpoint()), 4, "bad  gone"),
    ] {
        let mut doctor = command(&["doctor", "--listen", "127.0.0.1:0"]);
        doctor.env("CORTEX_NEURONS", neurons);
        let ran = tokio::task::spawn_blocking(move || run(doctor, "")).await.unwrap();
        assert!(ran.status == status && ran.out.contains(says), "{ran:?}");
    }
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
        (0, "ok: listens on 0.0.0.0:31313, metrics on 0.0.0.0:31314, 1 neuron, 0 placed models, no keys: open to whoever reaches it\n")
    );
    let bad = check("[gateway]\nlisten = 5\n");
    assert!(bad.status == 1 && bad.err.contains("line 2"), "{bad:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn out_of_file_descriptors_it_goes_on_with_what_it_has_and_recovers() {
    const DESCRIPTORS: usize = 64;
    let fleet = Fleet::start([MockModel::loaded("m").saying(["Good day."])]).await;
    let mut serve = Command::new("sh");
    serve.args(["-c", &format!("ulimit -n {DESCRIPTORS}; exec \"$0\" serve --listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0")]);
    serve.arg(env!("CARGO_BIN_EXE_cortex")).env("CORTEX_NEURONS", format!("mock={}", fleet.node.endpoint()));
    let mut child = serve.stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let (address, mut lines) =
        tokio::task::spawn_blocking(move || (lines.find_map(|line| served_at(&line)).unwrap(), lines)).await.unwrap();
    let client = neuron_api::Client::new(&format!("http://{address}"), neuron_api::ClientTimeouts::default());
    let asked = serde_json::json!({ "model": "m", "messages": [{ "role": "user", "content": "Hello" }] });
    let ask = async || client.post::<serde_json::Value>("/v1/chat/completions", &asked).await;
    ask().await.unwrap();
    let crowd: Vec<_> = (0..2 * DESCRIPTORS).map(|_| std::net::TcpStream::connect(&address).unwrap()).collect();
    let noticed = tokio::task::spawn_blocking(move || lines.any(|line| line.contains("cannot accept a connection")).then_some(lines));
    let lines = noticed.await.unwrap().expect("it says that it cannot accept");
    ask().await.expect("a connection that was open goes on");
    drop(crowd);
    let anew = neuron_api::Client::new(&format!("http://{address}"), neuron_api::ClientTimeouts::default());
    anew.post::<serde_json::Value>("/v1/chat/completions", &asked).await.expect("there is room again");
    drop(lines);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_keeps_nobody_waiting() {
    const REQUESTS: usize = 2_000; // their lines are several times what a pipe holds
    let fleet = Fleet::start([MockModel::loaded("m").saying(["Good day."])]).await;
    let mut serve = command(&["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]);
    serve.env("CORTEX_NEURONS", format!("mock={}", fleet.node.endpoint()));
    let mut child = serve.stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let (address, log) = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        while served_at(&line).is_none() {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "it ended before it served");
        }
        (served_at(&line).unwrap(), log)
    })
    .await
    .unwrap();
    let client = neuron_api::Client::new(&format!("http://{address}"), neuron_api::ClientTimeouts::default());
    for _ in 0..REQUESTS {
        let asked = serde_json::json!({ "model": "m", "messages": [{ "role": "user", "content": "Hello" }] });
        let answer: serde_json::Value = client.post("/v1/chat/completions", &asked).await.unwrap();
        assert_eq!(answer["choices"][0]["message"]["content"], "Good day.");
    }
    drop(log); // now that the pipe is gone, nothing may keep the program from ending either
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    assert!(tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap().success());
}
