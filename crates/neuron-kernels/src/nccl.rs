//! How GPUs of one host compute together.

#[cfg(feature = "cuda")]
pub use crate::cuda::nccl::{Communicator, Meeting};
#[cfg(not(feature = "cuda"))]
pub use none::{Communicator, Meeting};

#[cfg(not(feature = "cuda"))]
mod none {
    use candle_core::{Device, Result, Tensor, bail};

    /// Where ranks would meet: nobody can make one.
    #[derive(Clone, Copy, Debug)]
    pub enum Meeting {}

    /// A rank's way to the others: nobody can make one.
    #[derive(Debug)]
    pub enum Communicator {}

    impl Meeting {
        /// A new one.
        ///
        /// # Errors
        /// Always: this program was built without GPUs.
        pub fn new() -> Result<Self> {
            bail!("this neuron was built without support for GPUs")
        }
    }

    impl Communicator {
        /// Waits until all ranks have called this.
        ///
        /// # Errors
        /// Never: nobody comes here.
        pub fn join(meeting: Meeting, _rank: usize, _world_size: usize, _device: &Device) -> Result<Self> {
            match meeting {}
        }

        /// The sum of all ranks' `x`.
        ///
        /// # Errors
        /// Never: nobody comes here.
        pub fn all_reduce_sum(&self, _x: &Tensor) -> Result<Tensor> {
            match *self {}
        }

        /// All ranks' `x` one after the other.
        ///
        /// # Errors
        /// Never: nobody comes here.
        pub fn all_gather(&self, _x: &Tensor) -> Result<Tensor> {
            match *self {}
        }

        /// Parts this rank from the others.
        pub fn abort(&self) {
            match *self {}
        }

        /// Whether it was.
        pub fn is_aborted(&self) -> bool {
            match *self {}
        }
    }
}
