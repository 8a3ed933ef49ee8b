//! The fault table: each row is a fault, brought about over real sockets, and what it cost. `just faults` writes it to docs/faults.md.
//!
//! A request is lost when its client sees an error although another node could have answered, or it could have waited.

mod clock;
mod journal;
mod network;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use cortex_core::NodeState;
use cortex_core::config::{GatewayConfig, Millis};
use cortex_gateway::Gateway;
use futures::StreamExt;
use futures::future::join_all;
use http::{HeaderMap, HeaderValue, Method};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use neuron_api::mock::{Faults, MockConfig, MockModel, MockNeuron, MockServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use self::clock::clock_jumps;
use self::journal::journal_takes_no_more;
use self::network::{half_open, name_leads_elsewhere};
use crate::process::be_a_gateway;
use crate::rig::{RawNode, Rig, TestClient, chat, config, streamed, until};

/// What one fault cost.
#[derive(Default)]
struct Cost {
    requests: usize,
    lost: usize,
    note: String,
}

impl Cost {
    fn of(tally: &Tally, note: impl Into<String>) -> Self {
        Self { requests: tally.sent, lost: tally.lost, note: note.into() }
    }
}

/// How many requests were sent, and what became of them.
#[derive(Default)]
struct Tally {
    sent: usize,
    lost: usize,
    /// Streams that ended in an error event after their first token.
    cut: usize,
    first_loss: Option<String>,
}

impl Tally {
    fn and(self, other: Self) -> Self {
        Self {
            sent: self.sent + other.sent,
            lost: self.lost + other.lost,
            cut: self.cut + other.cut,
            first_loss: self.first_loss.or(other.first_loss),
        }
    }
}

/// `count` requests, `at_once` at a time, every other one streamed.
async fn load(addr: SocketAddr, count: usize, at_once: usize) -> Tally {
    load_by(&TestClient::new(addr), count, at_once).await
}

/// The same by clients like this one; each has connections of its own.
async fn load_by(client: &TestClient, count: usize, at_once: usize) -> Tally {
    let workers = (0..at_once).map(|worker| {
        let client = client.another();
        tokio::spawn(async move {
            let mut tally = Tally::default();
            for turn in 0..count / at_once {
                let text = format!("worker {worker} turn {turn}");
                let body = if turn % 2 == 0 { chat("m", &text) } else { streamed("m", &text) };
                let reply = client.chat(&body).await;
                let text = reply.text();
                let whole = reply.status == 200 && !text.contains("\"error\"") && (turn % 2 == 0 || text.ends_with("data: [DONE]\n\n"));
                let cut =
                    reply.status == 200 && text.contains("\"content\"") && text.contains("data: {\"error\"") && !text.contains("[DONE]");
                tally.sent += 1;
                tally.cut += usize::from(cut);
                if !whole && !cut {
                    tally.lost += 1;
                    tally.first_loss.get_or_insert(format!("{}: {text}", reply.status));
                }
            }
            tally
        })
    });
    join_all(workers).await.into_iter().map(Result::unwrap).fold(Tally::default(), Tally::and)
}

async fn three(change: impl FnOnce(&mut GatewayConfig)) -> Rig {
    Rig::with([vec![MockModel::loaded("m")], vec![MockModel::loaded("m")], vec![MockModel::loaded("m")]], |config| {
        config.timeouts.queue_ms_max = Millis::new(30_000);
        change(config);
    })
    .await
}

/// A gateway in front of a node that answers chats so, and a mock.
async fn beside(answer: impl Fn() -> Option<Response> + Send + Sync + 'static, change: impl FnOnce(&mut GatewayConfig)) -> (Rig, RawNode) {
    let strange =
        RawNode::start(vec![MockModel::loaded("m")], move |path, _| if path.starts_with("/v1/chat") { answer() } else { None }).await;
    let mock = MockNeuron::new(MockConfig::new([MockModel::loaded("m")])).serve().await.unwrap();
    let mut config = config([strange.addr, mock.addr]);
    change(&mut config);
    (Rig { gateway: Gateway::start(config).await.unwrap(), nodes: vec![mock] }, strange)
}

fn events(frames: Vec<Result<&'static str, std::io::ErrorKind>>, hangs: bool) -> Response {
    let frames = futures::stream::iter(frames).then(|frame: Result<&'static str, std::io::ErrorKind>| async move {
        if frame.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await; // what came before has been sent by then
        }
        frame.map(|text| Frame::data(Bytes::from_static(text.as_bytes())))
    });
    let frames = frames.chain(futures::stream::iter(hangs.then_some(())).then(|()| std::future::pending()));
    let mut response = Response::new(Body::new(StreamBody::new(frames.map(|frame| frame.map_err(std::io::Error::from)))));
    response.headers_mut().insert("content-type", HeaderValue::from_static("text/event-stream"));
    response
}

const DELTA: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n";

async fn refused_connection() -> Cost {
    let mut rig = three(|config| config.timeouts.probe_ms = Millis::new(5)).await;
    let (addr, dead) = (rig.gateway.addr, rig.nodes.remove(0));
    let loading = tokio::spawn(load(addr, 2_000, 20));
    dead.mock.wait_for(|counts| counts.finished > 50).await;
    let killed = Instant::now();
    drop(dead);
    until(async || matches!(rig.state(0), NodeState::Ejected { .. })).await;
    let noticed = killed.elapsed();
    let tally = loading.await.unwrap();
    assert_eq!(tally.lost, 0, "{:?}", tally.first_loss);
    Cost::of(&tally, format!("the node was out {noticed:.0?} after it died; {} streams that had begun ended in an error event", tally.cut))
}

async fn dies_before_the_first_token() -> Cost {
    let (rig, strange) = beside(|| Some(events(vec![Ok(": ping\n\n"), Err(std::io::ErrorKind::BrokenPipe)], false)), |_| {}).await;
    let tally = load(rig.gateway.addr, 200, 4).await;
    assert_eq!((tally.lost, tally.cut), (0, 0), "{:?}", tally.first_loss);
    let tried = strange.seen.lock().unwrap().iter().filter(|(path, ..)| path.starts_with("/v1/chat")).count();
    assert!(tried > 0);
    Cost::of(&tally, format!("{tried} of them had begun on the dying node; it was ejected after five in a row"))
}

async fn dies_after_the_first_token() -> Cost {
    let (rig, _strange) = beside(
        || Some(events(vec![Ok(DELTA), Err(std::io::ErrorKind::BrokenPipe)], false)),
        |config| {
            config.limits.node_failures_max = 1_000.try_into().unwrap();
        },
    )
    .await;
    let mut ended = (0, 0);
    for talk in 0..40 {
        let text = rig.client().chat(&streamed("m", &format!("talk {talk}"))).await.text();
        match text.contains("data: {\"error\"") && !text.contains("[DONE]") {
            true => ended.0 += 1,
            false => ended.1 += usize::from(text.ends_with("data: [DONE]\n\n")),
        }
    }
    assert!(ended.0 > 0 && ended.0 + ended.1 == 40);
    let cut = "cortex_requests_total{endpoint=\"/v1/chat/completions\",model=\"m\",node=\"a\",outcome=\"cut\"}";
    until(async || rig.metric(cut).await == Some(ended.0 as f64)).await;
    Cost { requests: 40, lost: 0, note: format!("{} cut streams, each ended in an error event and was counted", ended.0) }
}

/// Reads a stream to its end; when its first token came.
async fn follow(client: TestClient, text: String, begun: tokio::sync::mpsc::Sender<Instant>) -> String {
    let mut body = client.open_chat(&streamed("m", &text)).await.into_body();
    let (mut all, mut first) = (Vec::new(), Some(begun));
    while let Some(frame) = body.frame().await {
        all.extend_from_slice(&frame.unwrap().into_data().unwrap_or_default());
        if String::from_utf8_lossy(&all).contains("\"content\":\"")
            && let Some(begun) = first.take()
        {
            begun.send(Instant::now()).await.unwrap();
        }
    }
    String::from_utf8(all).unwrap()
}

async fn dies_under_streams() -> Cost {
    let mut rig = three(|config| config.timeouts.probe_ms = Millis::new(50)).await;
    let set = |rig: &Rig, prefill_ms: u64| {
        for node in &rig.nodes {
            node.mock.script("m", |model| {
                *model = model.clone().saying((0..40).map(|i| format!("word{i} ")));
                (model.prefill_time, model.token_time) = (Duration::from_millis(prefill_ms), Duration::from_millis(100));
            });
        }
    };
    let (begun, mut begins) = tokio::sync::mpsc::channel(64);
    let start = |rig: &Rig, group: &str| -> Vec<_> {
        let stream = |i| tokio::spawn(follow(rig.client(), format!("{group} {i}"), begun.clone()));
        (0..32).map(stream).collect()
    };
    set(&rig, 0);
    let early = start(&rig, "early");
    for _ in 0..32 {
        begins.recv().await.unwrap();
    }
    let on_dead = rig.mock(0).counts().generations;
    set(&rig, 2_000);
    let late = start(&rig, "late");
    until(async || rig.nodes.iter().map(|node| node.mock.counts().generations).sum::<usize>() == 64).await;
    let late_on_dead = rig.mock(0).counts().generations - on_dead;
    set(&rig, 0); // what is sent elsewhere begins at once, so that the time is the gateway's
    let killed = Instant::now();
    drop(rig.nodes.remove(0));
    let mut moved = Vec::new();
    while moved.len() < late_on_dead {
        moved.push(begins.recv().await.unwrap() - killed);
    }
    let recovery = moved.iter().max().copied().unwrap_or_default();
    let late: Vec<String> = join_all(late).await.into_iter().map(Result::unwrap).collect();
    let lost = late.iter().filter(|text| !text.ends_with("data: [DONE]\n\n")).count();
    let early: Vec<String> = join_all(early).await.into_iter().map(Result::unwrap).collect();
    let cut = early.iter().filter(|text| text.contains("data: {\"error\"") && !text.contains("[DONE]")).count();
    assert_eq!((lost, cut), (0, on_dead), "whoever had no token is served elsewhere; whoever had one is told");
    assert!(on_dead > 0 && late_on_dead > 0);
    let note = format!(
        "{late_on_dead} of 32 without a token moved, the last had its first token {recovery:.0?} later; {cut} of 32 with one ended in an error event"
    );
    Cost { requests: 64, lost, note }
}

async fn accepts_and_hangs() -> Cost {
    let rig = three(|config| config.timeouts.first_byte_ms_max = Millis::new(3_000)).await;
    rig.mock(0).set_faults("m", Faults { hang_admission: true, ..Faults::default() });
    let requests = (0..6).map(|talk| {
        let client = rig.client();
        tokio::spawn(async move { client.chat(&streamed("m", &format!("talk {talk}"))).await.status })
    });
    let lost = join_all(requests).await.into_iter().filter(|status| *status.as_ref().unwrap() != 200).count();
    assert_eq!(lost, 0);
    Cost { requests: 6, lost, note: "given up after first_byte_ms_max (3 s here), answered elsewhere".into() }
}

async fn stalls_in_the_middle() -> Cost {
    let (rig, _strange) = beside(|| Some(events(vec![Ok(DELTA)], true)), |config| config.timeouts.idle_ms_max = Millis::new(500)).await;
    let started = Instant::now();
    let requests = (0..16).map(|talk| {
        let client = rig.client();
        tokio::spawn(async move { client.chat(&streamed("m", &format!("talk {talk}"))).await.text() })
    });
    let texts: Vec<String> = join_all(requests).await.into_iter().map(Result::unwrap).collect();
    let stalled = texts.iter().filter(|text| text.contains("it said nothing for")).count();
    assert!(stalled > 0 && texts.iter().all(|text| text.contains("it said nothing for") || text.ends_with("data: [DONE]\n\n")));
    let note = format!("{stalled} streams stalled and ended in an error event within {:.1?} (idle_ms_max 0.5 s here)", started.elapsed());
    Cost { requests: 16, lost: 0, note }
}

async fn stale_pooled_connection() -> Cost {
    let rig = Rig::start([vec![MockModel::loaded("m")]]).await;
    let mut tally = Tally::default();
    for turn in 0..100 {
        let reply = rig.client().chat(&chat("m", &format!("turn {turn}"))).await;
        tally.sent += 1;
        tally.lost += usize::from(reply.status != 200);
        rig.mock(0).cut_connections();
    }
    assert_eq!(tally.lost, 0);
    Cost::of(&tally, "one node only; its idle connections were cut after each answer")
}

async fn client_leaves() -> Cost {
    let rig = Rig::start([vec![MockModel::loaded("m")]]).await;
    rig.mock(0).set_faults("m", Faults { hang: true, ..Faults::default() });
    let mut slowest = Duration::ZERO;
    for turn in 1..=20 {
        let client = rig.client();
        let request = tokio::spawn(async move { client.chat(&streamed("m", "hi")).await });
        rig.mock(0).wait_for(|counts| counts.active == 1).await;
        let left = Instant::now();
        request.abort();
        rig.mock(0).wait_for(|counts| counts.cancelled == turn && counts.active == 0).await;
        slowest = slowest.max(left.elapsed());
    }
    until(async || rig.in_flight() == 0).await;
    Cost { requests: 20, lost: 0, note: format!("the node's place was free again after at most {slowest:.1?}") }
}

async fn slow_clients() -> Cost {
    let rig = three(|config| config.timeouts.head_ms_max = Millis::new(500)).await;
    let mut slow = Vec::new();
    for _ in 0..100 {
        let mut socket = TcpStream::connect(rig.gateway.addr).await.unwrap();
        socket.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-slow: ").await.unwrap();
        slow.push(socket);
    }
    let tally = load(rig.gateway.addr, 200, 4).await;
    assert_eq!(tally.lost, 0, "{:?}", tally.first_loss);
    for mut socket in slow {
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(30), socket.read_to_end(&mut rest)).await.expect("a slow head is cut");
    }
    Cost::of(&tally, "100 connections with unfinished heads beside them were cut after head_ms_max")
}

async fn evil_bodies() -> Cost {
    let rig = three(|_| {}).await;
    let many: Vec<String> = (0..100_000).map(|_| r#"{"role":"user","content":"x"}"#.to_owned()).collect();
    let cases: Vec<(Vec<u8>, &[u16])> = vec![
        (format!(r#"{{"model":"m","messages":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000)).into(), &[400]),
        (format!(r#"{{"model":"m","messages":[{}]}}"#, many.join(",")).into(), &[200, 400]),
        (b"{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"\0\"}]}".to_vec(), &[400]),
        (br#"{"model":"m","messages":[{"role":"user","content":"\u0000"}]}"#.to_vec(), &[200, 400]),
        (br#"{"model":"m","messages":[{"role":"user","content":"\ud800"}]}"#.to_vec(), &[400]),
        (b"{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"\xff\xfe\"}]}".to_vec(), &[400]),
        (b"\xef\xbb\xbf{}".to_vec(), &[400]),
        (br#"{"model":{"model":"m"}}"#.to_vec(), &[400]),
        (br#"{"model":"m","messages":[],"max_tokens":1e999}"#.to_vec(), &[400]),
    ];
    let requests = cases.len() + 1;
    let giant = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", 1_u64 << 40);
    let answer = raw(rig.gateway.addr, giant.as_bytes()).await;
    assert!(answer.contains(" 413 "), "{answer}");
    for (body, statuses) in cases {
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        let reply = rig.client().request(Method::POST, "/v1/chat/completions", HeaderMap::new(), body).await;
        assert!(statuses.contains(&reply.status.as_u16()), "{shown}: {} {}", reply.status, reply.text());
    }
    assert_eq!(rig.client().chat(&chat("m", "hi")).await.status, 200);
    Cost { requests, lost: 0, note: "each was answered 400 or 413, or served where it is merely odd".into() }
}

/// Writes `head` as it is and reads the answer's first line.
async fn raw(addr: SocketAddr, head: &[u8]) -> String {
    let mut socket = TcpStream::connect(addr).await.unwrap();
    let _ = socket.write_all(head).await;
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(Duration::from_secs(30), socket.read(&mut answer)).await.expect("an answer").unwrap_or(0);
    String::from_utf8_lossy(&answer[..read]).lines().next().unwrap_or_default().to_owned()
}

async fn smuggling() -> Cost {
    let node = RawNode::start(vec![MockModel::loaded("m")], |_, _| None).await;
    let rig = crate::rig::in_front_of(&node, |_| {}).await;
    let addr = rig.gateway.addr;
    let both = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /admin/fleet HTTP/1.1\r\nhost: x\r\n\r\n";
    let answer = raw(addr, both).await;
    assert!(answer.contains(" 400 "), "{answer}");
    let huge = format!("GET /health HTTP/1.1\r\nhost: x\r\nx-huge: {}\r\n\r\n", "a".repeat(100 << 10));
    let answer = raw(addr, huge.as_bytes()).await;
    assert!(answer.is_empty() || answer.contains(" 431 "), "{answer}");
    let spoofed = HeaderMap::from_iter(
        [
            ("x-neuron-usage", "prompt=0;cached=0;completion=0"),
            ("x-forwarded-for", "10.0.0.1"),
            ("authorization", "Bearer x"),
            ("cookie", "a=b"),
        ]
        .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))),
    );
    let reply = rig.client().request(Method::POST, "/v1/chat/completions", spoofed, chat("m", "hi").to_string()).await;
    assert_eq!(reply.status, 200);
    for (_, headers, _) in node.seen.lock().unwrap().iter() {
        for name in ["x-neuron-usage", "x-forwarded-for", "authorization", "cookie", "x-huge"] {
            assert!(!headers.contains_key(name), "{name}");
        }
    }
    Cost { requests: 3, lost: 0, note: "read by its transfer-encoding alone and framed anew; refused; stripped".into() }
}

async fn cold_model() -> Cost {
    const REQUESTS: usize = 200;
    let slow = MockModel { load_time: Duration::from_millis(300), ..MockModel::available("m") };
    let node = MockNeuron::new(MockConfig { active_max: 10_000, ..MockConfig::new([slow]) }).serve().await.unwrap();
    let rig = Rig { gateway: Gateway::start(config([node.addr])).await.unwrap(), nodes: vec![node] };
    let tally = load(rig.gateway.addr, REQUESTS, REQUESTS).await;
    assert_eq!((tally.lost, rig.mock(0).counts().loads_started), (0, 1), "{:?}", tally.first_loss);
    Cost::of(&tally, "all at once: one load")
}

async fn load_fails() -> Cost {
    let nodes = [vec![MockModel::available("m")], vec![MockModel::available("m")], vec![MockModel::available("m")]];
    let rig = Rig::start(nodes).await;
    for node in [0, 1] {
        rig.mock(node).set_faults("m", Faults { fail_loads: 1, ..Faults::default() });
    }
    let tally = load(rig.gateway.addr, 40, 20).await;
    assert_eq!(tally.lost, 0, "{:?}", tally.first_loss);
    let failed: usize = (0..3).map(|node| rig.mock(node).counts().loads_failed).sum();
    Cost::of(&tally, format!("{failed} loads failed before one went well"))
}

async fn evict_race() -> Cost {
    let models = ["m", "n"].map(MockModel::available);
    let mock = MockConfig { memory_total_bytes: 1 << 30, active_max: 10_000, ..MockConfig::new(models) };
    let node = MockNeuron::new(mock).serve().await.unwrap();
    let mut config = config([node.addr]);
    let placed = ["m", "n"].map(|id| cortex_core::PlacedModel { spec: cortex_core::ModelSpec::new(id), nodes: Vec::new() });
    config.placement = cortex_core::Placement::new(placed, std::collections::BTreeMap::new());
    let terms = cortex_core::config::ModelTerms { vram_mb: Some(1024), ..Default::default() };
    config.terms = ["m", "n"].map(|id| (id.into(), terms.clone())).into();
    config.eviction.residency_ms_min = Millis::new(20);
    config.timeouts.reconcile_ms = Millis::new(10);
    let rig = Rig { gateway: Gateway::start(config).await.unwrap(), nodes: vec![node] };
    let requests = (0..64).map(|i| {
        let client = rig.client();
        tokio::spawn(async move {
            let mut lost = 0;
            for turn in 0..4 {
                let reply = client.chat(&chat(if (i + turn) % 2 == 0 { "m" } else { "n" }, "hi")).await;
                lost += usize::from(reply.status != 200);
                assert_ne!(reply.status, 404);
            }
            lost
        })
    });
    let lost: usize = join_all(requests).await.into_iter().map(Result::unwrap).sum();
    let counts = rig.mock(0).counts();
    assert_eq!((lost, counts.loads_failed), (0, 0));
    Cost { requests: 256, lost, note: format!("two models, room for one: {} loads, {} unloads", counts.loads, counts.unloads) }
}

async fn storm() -> Cost {
    const REQUESTS: usize = 200;
    let rig = three(|config| config.timeouts.queue_ms_max = Millis::new(1)).await;
    for node in 0..3 {
        rig.mock(node).set_faults("m", Faults { overloaded: Some(5 + node as u64), ..Faults::default() });
    }
    let started = Instant::now();
    for turn in 0..REQUESTS {
        let reply = rig.client().chat(&chat("m", &format!("turn {turn}"))).await;
        assert!(reply.status == 429 && reply.headers.contains_key("retry-after"));
    }
    let attempts: usize = (0..3).map(|node| rig.mock(node).counts().refused).sum();
    assert!(attempts <= REQUESTS + REQUESTS / 10 + 11 + started.elapsed().as_secs() as usize, "{attempts}");
    Cost {
        requests: REQUESTS,
        lost: 0,
        note: format!("every node refused; the nodes saw {attempts} attempts; each answer had Retry-After"),
    }
}

async fn sigterm_under_load() -> Cost {
    let slow = MockModel { token_time: Duration::from_millis(10), ..MockModel::loaded("m") }.saying((0..20).map(|i| format!("{i} ")));
    let rig = Rig::start([vec![slow]]).await;
    let (mock, addr) = (rig.mock(0).clone(), rig.gateway.addr);
    let streams: Vec<_> = (0..64)
        .map(|i| tokio::spawn(async move { TestClient::new(addr).chat(&streamed("m", &format!("talk {i}"))).await.text() }))
        .collect();
    mock.wait_for(|counts| counts.generations == 64).await;
    let drained = rig.gateway.shutdown().await;
    let lost = join_all(streams).await.into_iter().filter(|text| !text.as_ref().unwrap().ends_with("data: [DONE]\n\n")).count();
    assert_eq!((lost, drained.cut), (0, 0));
    Cost { requests: 64, lost, note: "all open streams ended well before the gateway did".into() }
}

async fn restart() -> Cost {
    let rig = three(|_| {}).await;
    let addrs: Vec<SocketAddr> = rig.nodes.iter().map(|node| node.addr).collect();
    let Rig { gateway, nodes } = rig;
    drop(gateway);
    let started = Instant::now();
    let again = Rig { gateway: Gateway::start(config(addrs)).await.unwrap(), nodes };
    assert_eq!(again.client().chat(&chat("m", "hi")).await.status, 200);
    let ready = started.elapsed();
    let moved: usize = (0..3).map(|node| again.mock(node).counts().loads_started + again.mock(node).counts().unloads).sum();
    assert_eq!(moved, 0);
    Cost { requests: 1, lost: 0, note: format!("first answer {ready:.0?} after the start; nothing was loaded or unloaded") }
}

async fn reload_under_load() -> Cost {
    let rig = three(|_| {}).await;
    let all = config(rig.nodes.iter().map(|node| node.addr));
    let mut fewer = all.clone();
    fewer.neurons.remove(0);
    let loading = tokio::spawn(load(rig.gateway.addr, 1_000, 10));
    let mut reloads = 0;
    while !loading.is_finished() {
        rig.gateway.reload(if reloads % 2 == 0 { fewer.clone() } else { all.clone() }).unwrap();
        reloads += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let tally = loading.await.unwrap();
    assert_eq!((tally.lost, tally.cut), (0, 0), "{:?}", tally.first_loss);
    Cost::of(&tally, format!("{reloads} reloads that took a node away and brought it back"))
}

async fn flapping() -> Cost {
    let mut rig = three(|config| config.timeouts.probe_ms = Millis::new(5)).await;
    let node = rig.nodes.remove(0);
    let (addr, mock) = (node.addr, node.mock.clone());
    let loading = tokio::spawn(load(rig.gateway.addr, 2_000, 10));
    let mut up: Option<MockServer> = Some(node);
    let mut flaps = 0;
    while !loading.is_finished() {
        up = match up {
            Some(server) => {
                drop(server);
                None
            }
            None => mock.serve_on(addr).await.ok(),
        };
        flaps += 1;
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let tally = loading.await.unwrap();
    assert_eq!(tally.lost, 0, "{:?}", tally.first_loss);
    Cost::of(&tally, format!("it went and came {flaps} times; {} streams that had begun ended in an error event", tally.cut))
}

/// A row with its fault in words; each runs alone.
type Row = (u32, &'static str, fn() -> futures::future::LocalBoxFuture<'static, Cost>);

macro_rules! rows {
    ($($number:literal $fault:literal $run:ident;)*) => { [$(($number, $fault, (|| Box::pin($run())) as fn() -> futures::future::LocalBoxFuture<'static, Cost>)),*] };
}

const ROWS: &[Row] = &rows![
    1 "a node dies; its connections are refused" refused_connection;
    2 "a node dies after the head, before the first token" dies_before_the_first_token;
    3 "a node dies after the first token" dies_after_the_first_token;
    3 "one of three nodes is killed under 64 streams" dies_under_streams;
    4 "a node accepts and then says nothing" accepts_and_hangs;
    5 "a stream stalls in the middle" stalls_in_the_middle;
    6 "a host is gone without a word (half-open TCP)" half_open;
    7 "pooled connections have gone stale" stale_pooled_connection;
    8 "the client leaves" client_leaves;
    9 "slow heads (slow-loris)" slow_clients;
    10 "giant, deep, broken bodies" evil_bodies;
    11 "smuggled requests, huge heads, spoofed headers" smuggling;
    13 "many requests for a cold model" cold_model;
    14 "loads fail" load_fails;
    15 "requests race evictions" evict_race;
    16 "every node refuses" storm;
    17 "SIGTERM under load" sigterm_under_load;
    18 "the gateway is killed and starts again" restart;
    19 "reloads under load" reload_under_load;
    21 "a node's name leads elsewhere" name_leads_elsewhere;
    22 "the time of day jumps" clock_jumps;
    23 "a node flaps" flapping;
    25 "the journal takes no more lines" journal_takes_no_more;
];

/// Rows of the design's table that other tests show.
const ELSEWHERE: &str = "Row 12 (strange framing by a node) is `transparency.rs`; row 20 (two names for one node) and invalid configurations are `reload.rs` and the tests of \
`cortex serve`, where file descriptors run out (24) and nobody reads standard error (25), too.";

/// The test below; as another process it is a gateway.
const TEST: &str = "fault_table::no_fault_costs_a_request_that_could_have_been_served";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_costs_a_request_that_could_have_been_served() {
    if be_a_gateway().await {
        return;
    }
    let mut table = String::from(
        "# What do faults cost?\n\nEach row brings a fault about in front of a gateway and mock nodes, over real sockets, and counts. *Lost* is a request whose client saw an error although \
         another node could have answered, or it could have waited. Written by `just faults`; the same test runs in CI and fails where a request is lost.\n\n\
         | # | fault | requests | lost | |\n|---|---|---|---|---|\n",
    );
    for (number, fault, run) in ROWS {
        let Cost { requests, lost, note } = run().await;
        let row = format!("| {number} | {fault} | {requests} | {lost} | {note} |");
        println!("{row}");
        assert_eq!(lost, 0, "{fault}");
        writeln!(table, "{row}").unwrap();
    }
    writeln!(table, "\n{ELSEWHERE}").unwrap();
    if std::env::var_os("CORTEX_WRITE_FAULTS").is_some() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/faults.md");
        std::fs::write(path, table).unwrap();
    }
}
