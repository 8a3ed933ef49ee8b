//! The journal takes no more lines.

use neuron_api::mock::{MockConfig, MockModel, MockNeuron};

use super::{Cost, load};
use crate::process::{DEAF_JOURNAL, GatewayProcess};
use crate::rig::{TestClient, until};

pub(super) async fn journal_takes_no_more() -> Cost {
    // Each request is a line, and these are more than a socket and the queue in front of it hold.
    const REQUESTS: usize = 2_000;
    let node = MockNeuron::new(MockConfig::new([MockModel::loaded("m")])).serve().await.unwrap();
    let config = format!(
        "[gateway]\nlisten = \"127.0.0.1:0\"\nmetrics_listen = \"127.0.0.1:0\"\n[timeouts]\nqueue_ms_max = 30000\n\
         [[neurons]]\nname = \"a\"\nendpoint = \"{}\"\n",
        node.endpoint()
    );
    let gateway = GatewayProcess::start(super::TEST, &config, |command| {
        command.env(DEAF_JOURNAL, "yes");
    });
    let tally = load(gateway.addr, REQUESTS, 20).await;
    assert_eq!(tally.lost, 0, "{:?}", tally.first_loss);
    let metrics = TestClient::new(gateway.metrics_addr);
    let dropped = async || {
        let text = metrics.get("/metrics").await.text();
        text.lines().find_map(|line| line.strip_prefix("cortex_log_lines_dropped_total ")?.parse::<u64>().ok()).unwrap()
    };
    until(async || dropped().await > 0).await;
    Cost::of(&tally, format!("a process of its own; {} of its lines were left out and counted", dropped().await))
}
