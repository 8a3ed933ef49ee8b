//! The time of day jumps by a day, both ways, under a gateway at work.

use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cortex_core::{FleetReport, NodeState};
use http::header::{DATE, RETRY_AFTER};
use neuron_api::mock::{MockConfig, MockModel, MockNeuron};
use sha2::{Digest, Sha256};

use super::{Cost, Tally, load_by};
use crate::process::GatewayProcess;
use crate::rig::{Reply, TestClient, chat};

const DAY_S: i64 = 86_400;
const ADMIN: &str = "key of an operator";
const METERED: &str = "key of a user";

/// A library that shifts the time of day by what `shift` says, for programs that it is loaded into.
fn shifted_clock(folder: &Path) -> PathBuf {
    let (source, library) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/clock.c"), folder.join("clock.so"));
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).status();
    assert!(built.expect("a C compiler, which other parts of the build need, too").success());
    library
}

pub(super) async fn clock_jumps() -> Cost {
    let folder = tempfile::tempdir().unwrap();
    let library = shifted_clock(folder.path());
    let shift_file = folder.path().join("shift");
    std::fs::write(&shift_file, 0_i64.to_ne_bytes()).unwrap();
    let shift = std::fs::OpenOptions::new().write(true).open(&shift_file).unwrap();
    let jump_to = |seconds: i64| shift.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();

    let words: Vec<String> = (0..10).map(|i| format!("{i} ")).collect();
    let model = MockModel { token_time: Duration::from_millis(2), ..MockModel::loaded("m") }.saying(words);
    let mut nodes = Vec::new();
    for _ in 0..2 {
        let models = [model.clone(), MockModel::loaded("idle"), MockModel::available("cold")];
        nodes.push(MockNeuron::new(MockConfig::new(models)).serve().await.unwrap());
    }
    let config = config(nodes[0].addr, nodes[1].addr);
    let gateway = GatewayProcess::start(super::TEST, &config, |command| {
        command.env("LD_PRELOAD", library).env("CLOCK_SHIFT_FILE", &shift_file);
    });
    let (operator, metered) = (TestClient::with_key(gateway.addr, ADMIN), TestClient::with_key(gateway.addr, METERED));
    let began = Instant::now();
    let ask_metered = async || metered.chat(&chat("m", "hi")).await;
    assert_eq!(ask_metered().await.status, 200);
    let still_limited = |reply: &Reply| {
        let waits_s: u64 = reply.headers.get(RETRY_AFTER).map_or(0, |after| after.to_str().unwrap().parse().unwrap());
        (reply.status == 429 && (1..=60).contains(&waits_s)) || began.elapsed() > Duration::from_secs(60)
    };
    let today = date(&operator).await;
    let mut sum = Tally::default();
    for seconds in [DAY_S, -DAY_S, 0] {
        let client = operator.clone();
        let loading = tokio::spawn(async move { load_by(&client, 400, 10).await });
        let finished: usize = nodes.iter().map(|node| node.mock.counts().finished).sum();
        while nodes.iter().map(|node| node.mock.counts().finished).sum::<usize>() < finished + 50 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        jump_to(seconds);
        while !loading.is_finished() {
            let fleet: FleetReport = serde_json::from_value(operator.get("/admin/fleet").await.json()).unwrap();
            assert!(fleet.nodes.iter().all(|node| node.state == NodeState::Ready), "{seconds} s off: {:?}", fleet.nodes);
        }
        sum = sum.and(loading.await.unwrap());
        let limited = ask_metered().await;
        assert!(still_limited(&limited), "{seconds} s off: {} {:?}", limited.status, limited.headers);
        if seconds == DAY_S {
            assert_ne!(date(&operator).await, today, "the gateway's time of day has jumped");
        }
    }
    assert_eq!((sum.lost, sum.cut), (0, 0), "{:?}", sum.first_loss);
    let moved: usize = nodes.iter().map(|node| node.mock.counts()).map(|counts| counts.loads_started + counts.unloads).sum();
    let metrics = TestClient::new(gateway.metrics_addr).get("/metrics").await.text();
    let retried = metrics.lines().any(|line| line.starts_with("cortex_retries_total{"));
    assert!(moved == 0 && !retried, "{moved} loads and unloads\n{metrics}");
    Cost::of(
        &sum,
        "a process of its own, a day ahead, a day back, and right again: nothing ejected, loaded or unloaded, no rate limit forgotten or prolonged",
    )
}

/// The day in the head of an answer; the hour may turn while the test runs.
async fn date(client: &TestClient) -> String {
    let reply = client.get("/version").await;
    reply.headers[DATE].to_str().unwrap().split(' ').take(4).collect::<Vec<_>>().join(" ")
}

fn config(a: SocketAddr, b: SocketAddr) -> String {
    let hash = |key: &str| Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!(
        "[gateway]\nlisten = \"127.0.0.1:0\"\nmetrics_listen = \"127.0.0.1:0\"\n\
         [timeouts]\npoll_ms = 50\nreconcile_ms = 50\nqueue_ms_max = 30000\n\
         [[neurons]]\nname = \"a\"\nendpoint = \"http://{a}\"\n[[neurons]]\nname = \"b\"\nendpoint = \"http://{b}\"\n\
         [[models]]\nid = \"idle\"\nidle_unload_s = 3600\n\
         [[keys]]\nname = \"operator\"\nadmin = true\nsha256 = \"{}\"\n\
         [[keys]]\nname = \"user\"\nrequests_per_minute_max = 1\nsha256 = \"{}\"\n",
        hash(ADMIN),
        hash(METERED)
    )
}
