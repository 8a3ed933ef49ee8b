//! How fast it could be at best: what a step must move and compute, over what this host was seen to do.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use neuron_engine::cache::kv_cache::BLOCK_SIZE;
use neuron_engine::device::limits::DeviceLimits;
use neuron_engine::models::config::{ModelConfig, Network};
use neuron_engine::models::decoder::MlpConfig;
use neuron_engine::{DeviceSet, LoadedModel};

use super::subject::Subject;

/// What one read asks for: it stays in the processor's cache.
const READ_BYTES: usize = 1 << 18;

/// Of this host, measured in this run.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostLimits {
    pub(super) device: DeviceLimits,
    /// Reading the weight files once more, which then come from memory; absent where there are none.
    pub(super) read_bytes_per_s: Option<f64>,
}

impl HostLimits {
    /// Of `count` devices together, taken to be as fast as the first.
    pub(super) async fn measure(devices: &DeviceSet, count: usize, subject: &Subject) -> anyhow::Result<Self> {
        let ranks = devices.ranks(1, None)?;
        let one = ranks[0].device.limits().await.context("cannot measure the device")?;
        // Those of a processor share it.
        let count = if ranks[0].device.is_gpu() { count as f64 } else { 1.0 };
        let device = DeviceLimits { copy_bytes_per_s: count * one.copy_bytes_per_s, matmul_flop_per_s: count * one.matmul_flop_per_s };
        let files = subject.weights_files.clone();
        let read_bytes_per_s = tokio::task::spawn_blocking(move || read_rate(&files)).await??;
        Ok(Self { device, read_bytes_per_s })
    }
}

fn read_rate(files: &[PathBuf]) -> std::io::Result<Option<f64>> {
    let mut rate = None;
    // The first time may be from disk.
    for _ in 0..2 {
        let started = Instant::now();
        let bytes = files.iter().map(|file| read_through(&File::open(file)?)).sum::<std::io::Result<u64>>()?;
        rate = (bytes > 0).then(|| bytes as f64 / started.elapsed().as_secs_f64());
    }
    Ok(rate)
}

/// All threads together, as loading does: one alone does not fill a memory bus.
fn read_through(file: &File) -> std::io::Result<u64> {
    let lanes = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let len = file.metadata()?.len();
    let share = len.div_ceil(lanes).max(1);
    std::thread::scope(|scope| {
        let lanes: Vec<_> =
            (0..lanes).map(|lane| scope.spawn(move || read_range(file, lane * share, len.min((lane + 1) * share)))).collect();
        lanes.into_iter().map(|lane| lane.join().unwrap_or_else(|_| Err(std::io::Error::other("a reader panicked")))).sum()
    })
}

fn read_range(file: &File, start: u64, end: u64) -> std::io::Result<u64> {
    let mut buffer = vec![0; READ_BYTES];
    let mut at = start;
    while at < end {
        let bytes = (READ_BYTES as u64).min(end - at);
        file.read_exact_at(&mut buffer[..bytes as usize], at)?;
        at += bytes;
    }
    Ok(end.saturating_sub(start))
}

/// What a dense decoder cannot avoid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Work {
    /// Weights that every step reads: all but the rows of an embedding that is not also the head.
    weight_bytes: f64,
    kv_bytes_per_token: f64,
    /// Per token, without the head.
    body_flop: f64,
    /// Per token that logits are wanted of.
    head_flop: f64,
    /// Per token and token that it looks at.
    attention_flop: f64,
}

impl Work {
    /// `None` for a mixture of experts, whose steps read as many experts as their tokens happen to choose, and for encoders.
    pub(super) fn of(config: &ModelConfig, model: &LoadedModel) -> Option<Self> {
        let Network::Decoder(decoder) = &config.network else { return None };
        if decoder.mlps.iter().any(|mlp| matches!(mlp, MlpConfig::Moe(_))) {
            return None;
        }
        let info = model.info();
        let table = (decoder.vocab_size * decoder.hidden_size) as f64;
        let (parameters, bytes) = (info.parameters as f64, info.weight_bytes as f64);
        let (looked_up, tables) = if decoder.tied { (0.0, 1.0) } else { (table, 2.0) };
        let kv_tokens = f64::from(model.health().kv_blocks_total) * BLOCK_SIZE as f64;
        Some(Self {
            weight_bytes: bytes * (1.0 - looked_up / parameters),
            kv_bytes_per_token: info.kv_bytes as f64 / kv_tokens,
            body_flop: 2.0 * (parameters - tables * table),
            head_flop: 2.0 * table,
            attention_flop: 4.0 * (decoder.mlps.len() * decoder.heads.query * decoder.heads.dim) as f64,
        })
    }

    /// Seconds of a step in which `batch` streams decode with `context` tokens behind each.
    pub(super) fn decode_s(&self, device: &DeviceLimits, batch: f64, context: f64) -> f64 {
        let bytes = self.weight_bytes + batch * context * self.kv_bytes_per_token;
        let flop = batch * (self.body_flop + self.head_flop + context * self.attention_flop);
        slower(device, bytes, flop)
    }

    /// Seconds for `prompts` whole prompts of `len` tokens and the logits of their last.
    pub(super) fn prefill_s(&self, device: &DeviceLimits, prompts: f64, len: f64) -> f64 {
        let flop = prompts * (len * (self.body_flop + len / 2.0 * self.attention_flop) + self.head_flop);
        slower(device, self.weight_bytes + prompts * len * self.kv_bytes_per_token, flop)
    }

    /// Answer tokens per second of `requests` that read and write `tokens` each: all prompts at once, then all answers together.
    pub(super) fn serve_rate(&self, device: &DeviceLimits, requests: f64, tokens: f64) -> f64 {
        let seconds = self.prefill_s(device, requests, tokens) + (tokens - 1.0) * self.decode_s(device, requests, tokens * 1.5);
        requests * tokens / seconds
    }
}

/// Memory and arithmetic work at the same time, so the slower one counts.
fn slower(device: &DeviceLimits, bytes: f64, flop: f64) -> f64 {
    (bytes / device.copy_bytes_per_s).max(flop / device.matmul_flop_per_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_file_is_read_once() {
        for len in [0, 1, 3, READ_BYTES * 3 + 5] {
            let file = tempfile::tempfile().unwrap();
            file.set_len(len as u64).unwrap();
            assert_eq!(read_through(&file).unwrap(), len as u64);
        }
    }

    #[test]
    fn one_stream_is_bound_by_memory_and_many_by_arithmetic() {
        let device = DeviceLimits { copy_bytes_per_s: 100.0, matmul_flop_per_s: 1000.0 };
        let work = Work { weight_bytes: 1000.0, kv_bytes_per_token: 1.0, body_flop: 900.0, head_flop: 100.0, attention_flop: 0.0 };
        assert_eq!(work.decode_s(&device, 1.0, 100.0), 11.0, "weights and one context, read once");
        assert_eq!(work.decode_s(&device, 50.0, 10.0), 50.0, "fifty tokens' arithmetic");
        assert_eq!(work.prefill_s(&device, 1.0, 100.0), 90.1, "logits of one token only");
        assert_eq!(work.serve_rate(&device, 50.0, 2.0), 100.0 / (95.0 + 50.0));
    }
}
