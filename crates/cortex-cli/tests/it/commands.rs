//! What the commands say and how they end.

use cortex_core::FleetReport;
use neuron_api::mock::{Faults, MockModel};

use crate::support::{Fleet, command, run};

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_the_fleet() {
    let fleet = Fleet::start([MockModel::loaded("chat-model"), MockModel::available("other")]).await;
    let ran = fleet.cortex(&["status"]).await;
    assert_eq!(ran.status, 0, "{ran:?}");
    let lines: Vec<&str> = ran.out.lines().collect();
    assert!(lines[0].starts_with("NODE") && lines[0].ends_with("LOAD"), "{}", ran.out);
    assert!(lines[1].starts_with("mock  ready") && lines[1].contains("chat-model ●  other ○"), "{}", ran.out);
    assert_eq!(lines[2], "● loaded  ○ available");
    assert!(!ran.out.contains('\x1b'), "no colour in a pipe");

    let ran = fleet.cortex(&["status", "--json"]).await;
    let report: FleetReport = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((report.nodes.len(), report.nodes[0].name.as_str()), (1, "mock"));
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_listed() {
    let fleet = Fleet::start([MockModel::loaded("a/b"), MockModel::available("c")]).await;
    let ran = fleet.cortex(&["models"]).await;
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(ran.out.contains("a/b") && ran.out.contains("available"), "{}", ran.out);
    let ran = fleet.cortex(&["models", "--json"]).await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&ran.out).unwrap()["object"], "list");
}

#[tokio::test(flavor = "multi_thread")]
async fn chat_answers_one_question_from_the_command_line_or_a_pipe() {
    let fleet = Fleet::start([MockModel::loaded("chat-model").saying(["Good ", "day", "."])]).await;
    for (args, input) in [(vec!["chat", "How", "are", "you?"], ""), (vec!["chat"], "How are\nyou?\n")] {
        let ran = fleet.cortex_with_input(&args, input).await;
        assert_eq!((ran.status, ran.out.as_str()), (0, "Good day.\n"), "{ran:?}");
    }
    let ran = fleet.cortex_with_input(&["chat"], "  \n").await;
    assert_eq!((ran.status, ran.err.lines().next()), (1, Some("error: the question is empty")), "{ran:?}");
    let asked = fleet.node.mock.requests();
    assert_eq!(asked.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn chat_passes_the_servers_words_on_when_it_refuses() {
    let fleet = Fleet::start([MockModel::loaded("chat-model")]).await;
    let ran = fleet.cortex(&["chat", "--model", "no/such", "Hello"]).await;
    assert_eq!(ran.status, 1, "{ran:?}");
    assert!(ran.err.starts_with("error: The model `no/such` does not exist"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn chat_says_so_when_an_answer_is_cut() {
    let faults = Faults { die_after: Some(2), ..Faults::default() };
    let model = MockModel { faults, ..MockModel::loaded("chat-model").saying(["one ", "two ", "three"]) };
    let fleet = Fleet::start([model]).await;
    let ran = fleet.cortex(&["chat", "Count"]).await;
    assert_eq!((ran.status, ran.out.as_str()), (1, "one two \n"), "{ran:?}");
    assert!(ran.err.starts_with("error: "), "{}", ran.err);
}

#[test]
fn a_gateway_that_is_not_there_has_its_own_exit_status() {
    // A port that was free a moment ago; nobody listens on it.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for subcommand in [&["status"][..], &["models"], &["chat", "Hello"]] {
        let mut command = command(subcommand);
        command.env("CORTEX_GATEWAY", format!("http://{address}"));
        let ran = run(command, "");
        assert_eq!(ran.status, 3, "{ran:?}");
        let text = ran.err.replace(&address.to_string(), "ADDRESS");
        assert!(text.starts_with("error: cannot reach the gateway at http://ADDRESS: Connection refused"), "{text}");
        assert!(text.contains("\n  = start one here with `cortex up`"), "{text}");
    }
}

#[test]
fn usage_is_explained() {
    let ran = run(command(&["--help"]), "");
    assert_eq!(ran.status, 0);
    for subcommand in ["serve", "status", "models", "chat", "completions"] {
        assert!(ran.out.contains(subcommand), "{}", ran.out);
    }
    assert_eq!(run(command(&["no-such-command"]), "").status, 2);
    let ran = run(command(&["completions", "bash"]), "");
    assert!(ran.status == 0 && ran.out.contains("_cortex()"), "{}", ran.out);
}
