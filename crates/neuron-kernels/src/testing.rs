//! What the tests of the ops share.

use candle_core::{DType, Device, Shape, Tensor};

/// Numbers in (-1, 1) that depend only on the shape's size and the seed.
pub(crate) fn noise(shape: impl Into<Shape>, seed: u64) -> Tensor {
    let shape = shape.into();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    let data: Vec<f32> = (0..shape.elem_count()).map(|_| next()).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).expect("as many numbers as the shape holds")
}

/// All elements, as f32.
pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|t| t.to_dtype(DType::F32)?.to_vec1()).expect("a CPU tensor")
}

/// All elements as bits, so that equal means equal.
pub(crate) fn bits(tensor: &Tensor) -> Vec<u32> {
    values(tensor).into_iter().map(f32::to_bits).collect()
}

/// Holds each element to `tolerance`, relative to 1 or to its own size.
#[track_caller]
pub(crate) fn assert_close(got: &Tensor, want: &Tensor, tolerance: f32) {
    assert_eq!(got.dims(), want.dims());
    for (i, (got, want)) in values(got).into_iter().zip(values(want)).enumerate() {
        assert!((got - want).abs() <= tolerance * want.abs().max(1.0), "element {i}: {got} for {want}");
    }
}

/// The rows of `tensor` one by one through `op`, stacked again.
pub(crate) fn row_by_row(tensor: &Tensor, op: impl Fn(&Tensor) -> candle_core::Result<Tensor>) -> Tensor {
    let rows: Vec<Tensor> =
        (0..tensor.dims()[0]).map(|i| op(&tensor.narrow(0, i, 1).expect("a row")).expect("the op of one row")).collect();
    Tensor::cat(&rows, 0).expect("rows of one shape")
}
