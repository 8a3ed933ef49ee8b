//! Memory for the results inside a CUDA graph, planned from one run and fixed from then on.
//!
//! A run is recorded: which results it makes, in order, and the last kernel that touches each. From that follow *slots*, allocations
//! that several results use in turn. While the run is captured it gets its results out of the slots, so the graph contains kernels only.
//! The order of kernels is the order of the stream; a slot may be written again once the last kernel that touched it is behind.

use std::collections::BTreeMap;

use candle_core::{DType, Result, Shape, Tensor, bail};

/// Where results come from at the moment.
#[derive(Default)]
pub(crate) enum Tape {
    /// Fresh memory.
    #[default]
    Off,
    /// Fresh memory, taking notes.
    Recording(Recording),
    /// The slots of an earlier recording.
    Replaying { results: Vec<Tensor>, next: usize },
}

/// Notes of one run.
#[derive(Default)]
pub(crate) struct Recording {
    results: Vec<Made>,
    /// Kernels launched so far.
    launches: usize,
    /// First address of each live result, and which it is.
    by_address: BTreeMap<u64, usize>,
}

/// A result of a run.
struct Made {
    shape: Shape,
    dtype: DType,
    bytes: u64,
    /// Kernels launched before it was asked for.
    born: usize,
    /// The last kernel that touches it.
    last_used: usize,
}

/// Memory that results use in turn.
pub(crate) struct Slot {
    /// All of it, one-dimensional.
    pub(crate) memory: Tensor,
    /// The last kernel of this recording that touches it.
    busy_until: usize,
}

impl Tape {
    /// Notes that the coming kernel touches what lies at `address`.
    pub(super) fn used(&mut self, address: u64) {
        if let Self::Recording(recording) = self {
            recording.used(address);
        }
    }

    /// Notes a launch.
    pub(super) fn launched(&mut self) {
        if let Self::Recording(recording) = self {
            recording.launches += 1;
        }
    }

    /// Notes a fresh result.
    pub(super) fn record(&mut self, tensor: &Tensor, address: u64) {
        if let Self::Recording(recording) = self {
            recording.made(tensor, address);
        }
    }

    /// The next result of a replay.
    pub(super) fn replay(&mut self, shape: &Shape, dtype: DType) -> Result<Option<Tensor>> {
        let Self::Replaying { results, next } = self else { return Ok(None) };
        match results.get(*next) {
            Some(tensor) if tensor.shape() == shape && tensor.dtype() == dtype => {
                *next += 1;
                Ok(Some(tensor.clone()))
            }
            _ => bail!("a step asked for {shape:?} of {} where its recording did not", dtype.as_str()),
        }
    }
}

impl Recording {
    fn made(&mut self, tensor: &Tensor, address: u64) {
        let bytes = (tensor.elem_count() * tensor.dtype().size_in_bytes()).max(1) as u64;
        // Memory that was freed meanwhile comes back under new names.
        let reused: Vec<u64> = self
            .by_address
            .range(..address + bytes)
            .rev()
            .map_while(|(&start, &made)| (start + self.results[made].bytes > address).then_some(start))
            .collect();
        reused.iter().for_each(|start| _ = self.by_address.remove(start));
        self.by_address.insert(address, self.results.len());
        let born = self.launches;
        self.results.push(Made { shape: tensor.shape().clone(), dtype: tensor.dtype(), bytes, born, last_used: born });
    }

    fn used(&mut self, address: u64) {
        if let Some((&start, &made)) = self.by_address.range(..=address).next_back() {
            let made = &mut self.results[made];
            if address < start + made.bytes {
                made.last_used = self.launches + 1;
            }
        }
    }

    /// Gives each result a slot, new ones by `allocate`; what lies at `kept` is never written again. Returns the results as views.
    pub(super) fn plan(
        mut self,
        kept: u64,
        slots: &mut Vec<Slot>,
        allocate: impl Fn(usize, DType) -> Result<Tensor>,
    ) -> Result<Vec<Tensor>> {
        if let Some((_, &made)) = self.by_address.range(..=kept).next_back() {
            self.results[made].last_used = usize::MAX;
        }
        slots.iter_mut().for_each(|slot| slot.busy_until = 0);
        self.results.iter().map(|made| made.place(slots, &allocate)).collect()
    }
}

impl Made {
    fn place(&self, slots: &mut Vec<Slot>, allocate: impl Fn(usize, DType) -> Result<Tensor>) -> Result<Tensor> {
        let count = self.shape.elem_count();
        let fits = |slot: &Slot| slot.memory.dtype() == self.dtype && slot.memory.elem_count() >= count && slot.busy_until <= self.born;
        let best = (0..slots.len()).filter(|&i| fits(&slots[i])).min_by_key(|&i| slots[i].memory.elem_count());
        let at = match best {
            Some(at) => at,
            None => {
                slots.push(Slot { memory: allocate(count, self.dtype)?, busy_until: 0 });
                slots.len() - 1
            }
        };
        // A result that no kernel read is written by the kernel after its birth.
        slots[at].busy_until = self.last_used.max(self.born + 1);
        slots[at].memory.narrow(0, 0, count)?.reshape(&self.shape)
    }
}
