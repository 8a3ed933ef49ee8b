//! Tensors that reach the device in pieces are those that reach it whole.

use candle_core::{DType, Device, Error, Result, Tensor};
use half::{bf16, f16};
use neuron_kernels::{Inbox, Staged, Staging};

use super::gpu;

/// Element `at` of tensor `which`, whatever the type.
fn number(which: usize, at: usize) -> f64 {
    ((at * 31 + which * 7) % 251) as f64 - 125.0
}

fn fill<T: Staged>(which: usize, asked: &mut Vec<usize>) -> impl FnMut(&mut [T]) -> Result<()> {
    let mut at = 0;
    move |out: &mut [T]| {
        asked.push(out.len());
        for x in out {
            *x = T::from_f64(number(which, at));
            at += 1;
        }
        Ok::<_, Error>(())
    }
}

/// Every length through a ring of so many bytes, read back only when all are under way.
fn lengths_arrive<T: Staged>(gpu: &Device, bytes: u64) {
    let mut staging = Staging::new(gpu, bytes).unwrap().expect("a GPU has one");
    let lens = [1, 7, 16_383, 16_385, 1_000_003, 0, 65_536, 300_001];
    let tensors: Vec<Tensor> = lens
        .iter()
        .enumerate()
        .map(|(which, &len)| {
            let mut asked = Vec::new();
            let tensor = staging.tensor(&[len, 1], fill::<T>(which, &mut asked)).unwrap();
            assert_eq!(asked.iter().sum::<usize>(), len);
            assert!(asked.iter().rev().skip(1).all(|&piece| piece == asked[0]), "{asked:?}");
            tensor
        })
        .collect();
    for (which, (tensor, len)) in tensors.iter().zip(lens).enumerate() {
        assert_eq!((tensor.dims(), tensor.dtype()), ([len, 1].as_slice(), T::DTYPE));
        if len == 0 {
            continue;
        }
        let found: Vec<f32> =
            tensor.to_device(&Device::Cpu).unwrap().flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap();
        let expected = (0..len).map(|at| number(which, at) as f32);
        assert!(found.into_iter().eq(expected), "{len} of {:?} through {bytes} bytes", T::DTYPE);
    }
}

#[test]
fn tensors_of_all_lengths_arrive_through_a_small_ring_and_a_large_one() {
    let gpu = gpu();
    for bytes in [1, 1 << 20, 1 << 30] {
        lengths_arrive::<f32>(&gpu, bytes);
        lengths_arrive::<bf16>(&gpu, bytes);
        lengths_arrive::<f16>(&gpu, bytes);
    }
    assert!(Staging::new(&Device::Cpu, 1 << 20).unwrap().is_none());
}

#[test]
fn a_failure_to_read_is_handed_on_and_the_ring_goes_on() {
    let gpu = gpu();
    let mut staging = Staging::new(&gpu, 1).unwrap().expect("a GPU has one");
    let refused = staging.tensor(&[100_000], |_: &mut [f32]| Err(Error::Msg("no such file".into())));
    assert!(refused.unwrap_err().to_string().contains("no such file"));
    let ones = staging
        .tensor(&[100_000], |out: &mut [f32]| {
            out.fill(1.0);
            Ok::<_, Error>(())
        })
        .unwrap();
    assert_eq!(ones.sum_all().unwrap().to_scalar::<f32>().unwrap(), 100_000.0);
}

#[test]
fn numbers_put_one_after_the_other_are_those_that_were_put() {
    let gpu = gpu();
    let mut inbox = Inbox::default();
    let copies: Vec<Tensor> = (0..50u32)
        .map(|round| {
            let words: Vec<u32> = (0..100_000).map(|i| i * 3 + round).collect();
            inbox.put(&words, &gpu).unwrap().copy().unwrap()
        })
        .collect();
    for (round, copy) in copies.iter().enumerate() {
        let words = copy.to_vec1::<u32>().unwrap();
        assert!(words.iter().enumerate().all(|(i, word)| *word as usize == i * 3 + round), "round {round}");
    }
}
