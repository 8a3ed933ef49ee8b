//! A device that fails: what was on it is told so and is lost for good, and nobody waits in vain.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use candle_core::{Device, Result};
use cortex_core::HarnessError;
use futures::FutureExt;
use futures::future::join_all;
#[cfg(feature = "cuda")]
use neuron_engine::device::hardware::Gpu;
use neuron_engine::device::hardware::{Hardware, Probe};
use neuron_engine::device::thread::DeviceHandle;
use neuron_engine::{DeviceSet, EngineLimits, LoadOptions, LoadedModel, load};

use crate::engine::{answer, request};
use crate::fixtures;

/// A processor that fails as a GPU does after an error in a kernel: from one moment on, at everything.
#[derive(Clone)]
struct Fragile {
    /// It fails after being looked at so many times more.
    looks_left: Arc<AtomicUsize>,
}

const FAULT: &str = "an illegal address was encountered";

impl Fragile {
    fn new() -> Self {
        Self { looks_left: Arc::new(AtomicUsize::new(usize::MAX)) }
    }

    fn fail_after(&self, looks: usize) {
        self.looks_left.store(looks, SeqCst);
    }

    fn device(&self, index: usize) -> DeviceHandle {
        DeviceHandle::start(format!("fragile-{index}"), false, self.clone()).unwrap()
    }
}

impl Hardware for Fragile {
    fn open(&self) -> Result<Device> {
        Ok(Device::Cpu)
    }

    fn probe(&self, _: &Device) -> Result<Option<Probe>> {
        let looks_left = self.looks_left.clone();
        Ok(Some(Box::new(move || {
            let left = looks_left.fetch_update(SeqCst, SeqCst, |left| Some(left.saturating_sub(1)));
            (left == Ok(0)).then(|| FAULT.to_owned())
        })))
    }

    fn fail(&self, _: &Device) -> Result<()> {
        self.fail_after(0);
        Ok(())
    }
}

async fn model(devices: &DeviceSet, on: &[usize]) -> LoadedModel {
    let options = LoadOptions { tensor_parallel: on.len(), devices: Some(on.to_vec()), context: Some(256), ..Default::default() };
    let folder = fixtures::sets()[0].checkpoint("qwen3-dense-untied");
    load(devices, "test".into(), folder, options).await.unwrap()
}

/// Long enough that none has ended when a device fails some steps in.
fn long(first: u32) -> cortex_core::GenerateRequest {
    request(vec![first, 5, 9], 100)
}

fn is_lost(error: &HarnessError) -> bool {
    matches!(error, HarnessError::DeviceFailed { reason, retry_after_s: 1.. } if reason.contains(FAULT))
}

/// A broken engine would leave somebody waiting for ever; this only makes such a test end.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_streams_on_a_failed_device_are_told_so_and_it_refuses_everything_from_then_on() {
    let fragile = Fragile::new();
    let devices = DeviceSet::of(vec![fragile.device(0), DeviceHandle::cpu(1).unwrap()]);
    let [lost, kept] = [model(&devices, &[0]).await, model(&devices, &[1]).await];
    let expected = answer(&lost, long(1), vec![]).await.unwrap().without_cache();
    assert!(devices.failure().now_or_never().is_none());

    fragile.fail_after(30);
    // More than the scheduler runs at a time, so that some wait when it happens.
    let streams = join_all((0..6).map(|first| answer(&lost, long(first), vec![])));
    let (streams, other) = soon(futures::future::join(streams, answer(&kept, long(1), vec![]))).await;
    assert!(streams.iter().all(|ended| ended.as_ref().is_err_and(is_lost)), "{streams:?}");
    assert_eq!(other.unwrap().without_cache(), expected);
    assert_eq!(soon(devices.failure()).await, format!("fragile-0: {FAULT}"));
    assert_eq!(devices.faults(), [Some(FAULT.to_owned()), None]);
    assert!(answer(&lost, long(1), vec![]).await.is_err_and(|error| is_lost(&error)));
    assert_eq!((lost.health().servable, kept.health().servable), (false, true));

    soon(lost.unload(Duration::ZERO)).await;
    let refused = load(&devices, "test".into(), fixtures::demo_checkpoint(), LoadOptions::default()).await.err().unwrap();
    assert!(refused.to_string().contains(FAULT), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_split_model_is_lost_with_one_of_its_devices() {
    for failing in [0, 1] {
        let fragile = [Fragile::new(), Fragile::new()];
        let devices = DeviceSet::of(fragile.iter().enumerate().map(|(index, fragile)| fragile.device(index)).collect());
        let lost = model(&devices, &[0, 1]).await;
        fragile[failing].fail_after(30);
        let streams = soon(join_all((0..3).map(|first| answer(&lost, long(first), vec![])))).await;
        assert!(streams.iter().all(|ended| ended.as_ref().is_err_and(is_lost)), "{streams:?}");
        soon(lost.unload(Duration::ZERO)).await;
    }
}

/// Hardware whose thread stands still while it is told to.
#[derive(Clone)]
struct Stalling<H>(H, Arc<AtomicBool>);

impl<H: Hardware> Hardware for Stalling<H> {
    fn open(&self) -> Result<Device> {
        self.0.open()
    }

    fn probe(&self, device: &Device) -> Result<Option<Probe>> {
        let (probe, stalls, owner) = (self.0.probe(device)?, self.1.clone(), std::thread::current().id());
        Ok(Some(Box::new(move || {
            while std::thread::current().id() == owner && stalls.load(SeqCst) {
                std::thread::yield_now();
            }
            probe.as_ref().and_then(|probe| probe())
        })))
    }

    fn fail(&self, device: &Device) -> Result<()> {
        self.0.fail(device)
    }
}

/// A split model over both devices, of which the second stands still: its stream ends with an error, the other model goes on, and both
/// devices can be used again.
async fn a_rank_does_not_come<H: Hardware>(is_gpu: bool, hardware: [H; 2]) {
    let [first, second] = hardware;
    let stalls = Arc::new(AtomicBool::new(false));
    let devices = DeviceSet::of(vec![
        DeviceHandle::start("rank-0".into(), is_gpu, first).unwrap(),
        DeviceHandle::start("rank-1".into(), is_gpu, Stalling(second, stalls.clone())).unwrap(),
    ]);
    let split = |step_max| LoadOptions {
        tensor_parallel: 2,
        context: Some(256),
        limits: EngineLimits { step_max, ..Default::default() },
        ..Default::default()
    };
    let folder = || fixtures::sets()[0].checkpoint("qwen3-dense-untied");
    let alone = model(&devices, &[0]).await;
    let parted = load(&devices, "split".into(), folder(), split(Duration::from_millis(500))).await.unwrap();
    let expected = answer(&parted, request(vec![1, 5, 9], 20), vec![]).await.unwrap().tokens();
    stalls.store(true, SeqCst);
    let ended = soon(answer(&parted, long(1), vec![])).await;
    stalls.store(false, SeqCst);
    assert!(ended.as_ref().is_err_and(|error| error.to_string().contains("another rank failed")), "{ended:?}");
    assert!(!parted.health().servable && alone.health().servable);
    assert!(soon(answer(&alone, long(1), vec![])).await.is_ok());
    soon(parted.unload(Duration::ZERO)).await;
    let again = load(&devices, "split".into(), folder(), split(Duration::from_secs(30))).await.unwrap();
    assert_eq!(answer(&again, request(vec![1, 5, 9], 20), vec![]).await.unwrap().tokens(), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranks_do_not_wait_for_ever_for_one_that_does_not_come() {
    a_rank_does_not_come(false, [Fragile::new(), Fragile::new()]).await;
}

#[cfg(feature = "cuda")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gpus_do_not_wait_for_ever_for_one_that_does_not_come() {
    a_rank_does_not_come(true, [Gpu(0), Gpu(1)]).await;
}

#[tokio::test]
async fn an_idle_device_that_fails_is_noticed_at_the_next_command() {
    let devices = DeviceSet::of(vec![Fragile::new().device(0)]);
    devices.fail(0).await.unwrap();
    assert_eq!(soon(devices.failure()).await, format!("fragile-0: {FAULT}"));
    assert!(devices.fail(0).await.is_err());
}
