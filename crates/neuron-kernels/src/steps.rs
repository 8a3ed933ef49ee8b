//! Steps that run again and again: on a GPU they are captured once and replayed; on a CPU they are simply run.

#[cfg(feature = "cuda")]
pub use crate::cuda::{Delivery, Inbox, Outbox, StepGraphs};
#[cfg(not(feature = "cuda"))]
pub use plain::{Delivery, Inbox, Outbox, StepGraphs};

#[cfg(not(feature = "cuda"))]
mod plain {
    use candle_core::{Device, Result, Tensor};

    /// The captured steps of one model; without a GPU there are none.
    #[derive(Debug, Default)]
    pub struct StepGraphs;

    /// Numbers that change from step to step.
    #[derive(Debug, Default)]
    pub struct Inbox;

    /// Numbers from a device; without a GPU they are there at once.
    pub struct Delivery(Vec<u32>);

    /// The way of numbers from a device.
    #[derive(Clone, Debug, Default)]
    pub struct Outbox;

    impl Outbox {
        /// A copy of `tensor`, `[N]` u32.
        ///
        /// # Errors
        /// When it is of another shape or type.
        pub fn send(&self, tensor: &Tensor) -> Result<Delivery> {
            Ok(Delivery(tensor.to_vec1()?))
        }
    }

    impl Delivery {
        /// What was copied.
        ///
        /// # Errors
        /// Never without a GPU.
        pub fn wait(self) -> Result<Vec<u32>> {
            Ok(self.0)
        }
    }

    impl StepGraphs {
        /// Runs `step`.
        ///
        /// # Errors
        /// When the step fails.
        pub fn run(&mut self, _key: (usize, usize), _device: &Device, step: impl Fn() -> Result<Tensor>) -> Result<Tensor> {
            step()
        }
    }

    impl Inbox {
        /// The numbers as a tensor `[N]` on the device.
        ///
        /// # Errors
        /// When the device has no memory for them.
        pub fn put(&mut self, words: &[u32], device: &Device) -> Result<Tensor> {
            Tensor::new(words, device)
        }
    }
}
