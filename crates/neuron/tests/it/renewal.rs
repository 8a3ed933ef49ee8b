//! A node whose device fails starts anew in its own place. Each test runs itself once more as that node, since a process is replaced.

// A helper that unwraps fails its test, as it should.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use candle_core::Device;
use cortex_core::{Harness, ModelSpec};
use neuron::candle::CandleBackend;
use neuron::config::process_env;
use neuron::{Daemon, Ended, NeuronConfig};
use neuron_api::{Client, ClientTimeouts};
use neuron_engine::DeviceSet;
use neuron_engine::device::hardware::{Hardware, Probe};
use neuron_engine::device::thread::DeviceHandle;
use serde_json::{Value, json};

/// Set where the test is to be the node.
const IS_NODE: &str = "NEURON_TEST_IS_NODE";
/// In front of the node's address and process id.
const LISTENS: &str = "node listens: ";

/// A processor that fails when it is told to, as a GPU does after an error in a kernel.
#[derive(Clone, Default)]
struct Fragile(Arc<AtomicBool>);

impl Hardware for Fragile {
    fn open(&self) -> candle_core::Result<Device> {
        Ok(Device::Cpu)
    }

    fn probe(&self, _: &Device) -> candle_core::Result<Option<Probe>> {
        let fails = self.0.clone();
        Ok(Some(Box::new(move || fails.load(SeqCst).then(|| "a trap".to_owned()))))
    }

    fn fail(&self, _: &Device) -> candle_core::Result<()> {
        self.0.store(true, SeqCst);
        Ok(())
    }
}

#[test]
fn a_failed_device_costs_its_streams_and_the_models_come_back_in_the_same_process_id() {
    let test = "renewal::a_failed_device_costs_its_streams_and_the_models_come_back_in_the_same_process_id";
    fails_thrice(test, || DeviceSet::of(vec![DeviceHandle::start("fragile-0".into(), false, Fragile::default()).unwrap()]));
}

#[cfg(feature = "cuda")]
#[test]
fn after_a_trap_on_a_gpu_the_models_are_back_within_five_seconds() {
    let test = "renewal::after_a_trap_on_a_gpu_the_models_are_back_within_five_seconds";
    let away = fails_thrice(test, || {
        let (devices, why_not) = DeviceSet::detect(1).unwrap();
        assert_eq!(why_not, None, "this test needs a GPU");
        devices
    });
    println!("away for {away:?}");
    assert!(away.iter().all(|away| *away < Duration::from_secs(5)), "{away:?}");
}

fn demo(id: &str) -> ModelSpec {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/cortex-demo");
    ModelSpec { source: folder.to_str().map(str::to_owned), context: Some(4096), parallel: Some(2), ..ModelSpec::new(id) }
}

/// Lets the device fail under a stream, three times, then once too often. Answers how long the models were away.
fn fails_thrice(test: &str, devices: impl FnOnce() -> DeviceSet) -> Vec<Duration> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if std::env::var_os(IS_NODE).is_some() {
        runtime.block_on(be_the_node(devices()));
        return Vec::new();
    }
    let mut node = Node::start(test);
    runtime.block_on(async {
        let spec = serde_json::to_value(demo("loaded-later")).unwrap();
        let _: Value = node.client.post("/models/load", &spec).await.expect("a load");
        let before = [ask(&node.client, "preloaded").await, ask(&node.client, "loaded-later").await];
        let mut away = Vec::new();
        for _ in 0..3 {
            let mut stream = node.client.chat(&long()).await.expect("a stream");
            stream.next_chunk().await.expect("an event").expect("a start");
            node.fail();
            let failed = Instant::now();
            assert_eq!(last_words(&mut stream).await, "device_failed");
            node.hear();
            while ask(&node.client, "loaded-later").await.is_null() {}
            away.push(failed.elapsed());
            assert_eq!([ask(&node.client, "preloaded").await, ask(&node.client, "loaded-later").await], before);
        }
        node.fail();
        let output = node.end();
        assert!(output.contains("failed 4 times within 10 minutes"), "{output}");
        away
    })
}

/// `null` while the model is not there.
async fn ask(client: &Client, model: &str) -> Value {
    let messages = json!([{ "role": "user", "content": "What is 3 plus 4?" }]);
    let body = json!({ "model": model, "temperature": 0, "max_tokens": 24, "messages": messages });
    client.post("/v1/chat/completions", &body).await.map_or(Value::Null, |answer: Value| answer["choices"][0]["message"]["content"].clone())
}

/// An answer that takes seconds.
fn long() -> Value {
    let messages = json!([{ "role": "user", "content": "What is 3 plus 4?" }]);
    json!({ "model": "preloaded", "temperature": 0, "max_tokens": 4000, "ignore_eos": true, "messages": messages, "stream": true })
}

/// The code of the error that ends the stream.
async fn last_words(stream: &mut neuron_api::ChatStream) -> String {
    while let Some(event) = stream.next_chunk().await {
        if let Err(neuron_api::ClientError::Status(error)) = event {
            return error.body.error.code.unwrap_or_default();
        }
    }
    "none: the stream ended well".to_owned()
}

/// The other process, as its parent sees it.
struct Node {
    child: Child,
    orders: ChildStdin,
    output: BufReader<ChildStdout>,
    client: Client,
}

impl Node {
    fn start(test: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture"]).env(IS_NODE, "1").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (orders, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let client = Client::new("http://127.0.0.1:1", ClientTimeouts::default());
        let mut node = Self { child, orders, output, client };
        node.hear();
        node
    }

    /// Waits until it listens, as the process that was started.
    fn hear(&mut self) {
        for line in (&mut self.output).lines() {
            let line = line.unwrap();
            // The harness of tests writes its own words in front.
            let Some((addr, id)) = line.split_once(LISTENS).and_then(|(_, said)| said.split_once(' ')) else { continue };
            assert_eq!(id, self.child.id().to_string());
            self.client = Client::new(&format!("http://{addr}"), ClientTimeouts::default());
            return;
        }
        panic!("the node ended");
    }

    fn fail(&mut self) {
        writeln!(self.orders, "fail").unwrap();
    }

    fn end(mut self) -> String {
        let output = self.output.lines().map_while(Result::ok).collect::<Vec<_>>().join("\n");
        assert!(!self.child.wait().unwrap().success());
        output
    }
}

/// What `neuron` does, with a device that fails at each line of the standard input.
async fn be_the_node(devices: DeviceSet) {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = NeuronConfig { listen, models: vec![demo("preloaded")], preload: vec!["preloaded".into()], ..NeuronConfig::default() };
    let config = config.with_env(&process_env).unwrap();
    let mut daemon = Daemon::start_with(config.clone(), Arc::new(CandleBackend::over(devices.clone(), &config))).await.unwrap();
    assert!(daemon.preloaded().await.iter().all(|(_, loaded)| loaded.is_ok()));
    assert!(daemon.harness.health().devices.iter().all(|device| device.poisoned.is_none()));
    println!("{LISTENS}{} {}", daemon.addr, std::process::id());
    let handle = tokio::runtime::Handle::current();
    std::thread::spawn(move || {
        for _ in std::io::stdin().lock().lines() {
            handle.block_on(devices.fail(0)).unwrap();
        }
    });
    let Ended::DeviceFailed(reason) = daemon.ended().await else { panic!("the server failed") };
    assert!(daemon.harness.health().devices.iter().any(|device| device.poisoned.is_some()), "{reason}");
    match daemon.leave().await {
        Ok(legacy) => panic!("{:#}", legacy.hand_over()),
        Err(error) => {
            println!("{error:#}");
            std::process::exit(1);
        }
    }
}
