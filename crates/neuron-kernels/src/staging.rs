//! Large tensors on their way to a device, in pieces, so that one piece is made while those before it travel.

use candle_core::WithDType;
use half::{bf16, f16};

#[cfg(feature = "cuda")]
pub use crate::cuda::Staging;
#[cfg(not(feature = "cuda"))]
pub use none::Staging;

/// A type of which every pattern of bits is a number, so that memory may be seen as one of them after another.
pub trait Staged: WithDType + sealed::Sealed {}

impl Staged for f32 {}
impl Staged for f16 {}
impl Staged for bf16 {}
impl Staged for u32 {}

mod sealed {
    use half::{bf16, f16};

    pub trait Sealed {}

    impl Sealed for f32 {}
    impl Sealed for f16 {}
    impl Sealed for bf16 {}
    impl Sealed for u32 {}
}

#[cfg(not(feature = "cuda"))]
mod none {
    use std::convert::Infallible;

    use candle_core::{Device, Error, Result, Tensor};

    use super::Staged;

    /// The way to a GPU, and without one there is none.
    #[derive(Debug)]
    pub struct Staging(Infallible);

    impl Staging {
        /// Absent for a CPU, whose memory is filled where it lies.
        ///
        /// # Errors
        /// Never without a GPU.
        pub fn new(_device: &Device, _bytes: u64) -> Result<Option<Self>> {
            Ok(None)
        }

        /// A tensor whose elements `fill` gives.
        ///
        /// # Errors
        /// Never without a GPU.
        pub fn tensor<T: Staged, E: From<Error>>(
            &mut self,
            _shape: &[usize],
            _fill: impl FnMut(&mut [T]) -> std::result::Result<(), E>,
        ) -> std::result::Result<Tensor, E> {
            match self.0 {}
        }
    }
}
