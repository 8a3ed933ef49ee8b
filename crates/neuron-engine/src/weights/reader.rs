//! The elements of stacked parts in order, read by as many threads as there are: one alone copies slower than a GPU takes.

use rayon::prelude::*;
use safetensors::tensor::TensorInfo;

use super::file::WeightsFile;
use super::safetensors::{Element, Stored};
use super::{Part, Place};
use crate::error::LoadError;

/// What one thread reads at a time: large enough to stream, small enough to stay in the processor's cache.
const PIECE_ELEMENTS_MAX: usize = 1 << 17;

/// A tensor whose shape and type have been checked.
pub(super) struct Found<'a> {
    pub(super) place: &'a Place,
    pub(super) file: &'a WeightsFile,
    pub(super) info: &'a TensorInfo,
    pub(super) stored: Stored,
}

/// Reads from where it stopped.
pub(super) struct Reader<'a> {
    runs: Box<dyn Iterator<Item = Run<'a>> + 'a>,
    /// What is left of the run that was cut last.
    rest: Option<Run<'a>>,
}

/// Neighbouring elements of one tensor.
#[derive(Clone, Copy)]
struct Run<'a> {
    found: &'a Found<'a>,
    start: usize,
    len: usize,
}

impl<'a> Reader<'a> {
    /// Of `parts`, each checked against the tensor found for it.
    pub(super) fn new(found: &'a [Found<'a>], parts: &'a [Part]) -> Self {
        let runs = found.iter().zip(parts).flat_map(|(found, part)| part.runs().map(move |(start, len)| Run { found, start, len }));
        Self { runs: Box::new(runs), rest: None }
    }

    /// Fills `out` with the next elements, of which there must be so many.
    pub(super) fn fill<T: Element>(&mut self, out: &mut [T]) -> Result<(), LoadError> {
        let mut pieces = Vec::new();
        let mut rest = out;
        while let Some(run) = self.next(rest.len().min(PIECE_ELEMENTS_MAX)) {
            let (of_run, behind) = rest.split_at_mut(run.len);
            pieces.push((run, of_run));
            rest = behind;
        }
        debug_assert!(rest.is_empty(), "nobody asks for more elements than there are");
        pieces.into_par_iter().try_for_each_init(Vec::new, |buffer, (run, out)| {
            let Run { found, start, .. } = run;
            found.file.read(found.info, found.stored, start, out, buffer)
        })
    }

    /// The next run, cut to at most `max` elements; `None` if that is 0 or nothing is left.
    fn next(&mut self, max: usize) -> Option<Run<'a>> {
        if max == 0 {
            return None;
        }
        let run = self.rest.take().or_else(|| self.runs.next())?;
        let len = run.len.min(max);
        self.rest = (len < run.len).then(|| Run { start: run.start + len, len: run.len - len, ..run });
        Some(Run { len, ..run })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::weights::random::RandomCheckpoint;
    use crate::weights::{Precision, Weights};

    #[test]
    fn the_elements_are_the_same_however_many_are_asked_for_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let tensors = [("a", vec![24, 70]), ("b", vec![3, 70])].map(|(name, shape)| (name.to_owned(), shape)).into();
        let checkpoint = RandomCheckpoint { seed: 3, tensors };
        checkpoint.describe(folder.path()).unwrap();
        checkpoint.store(folder.path()).unwrap();
        let weights = Weights::open(folder.path(), &Device::Cpu, Precision::CPU).unwrap();
        let parts = [
            Part::slice("a", &[24, 70], 1, 3..50),
            Part::slice("b", &[3, 70], 0, 1..1),
            Part::whole("b", &[3, 70]),
            Part::slice("a", &[24, 70], 0, 5..6),
        ];
        let found: Vec<_> = parts.iter().map(|part| weights.find(part).unwrap()).collect();
        let count = parts.iter().map(Part::elements).sum();
        let read = |at_a_time: usize| {
            let (mut reader, mut elements) = (Reader::new(&found, &parts), vec![0f32; count]);
            elements.chunks_mut(at_a_time).for_each(|next| reader.fill(next).unwrap());
            elements
        };
        let whole = read(count);
        assert!(whole.iter().all(|x| *x != 0.0), "every place was written");
        for at_a_time in [1, 2, 46, 47, 48, 94, 95, 1000, count - 1] {
            assert_eq!(read(at_a_time), whole, "{at_a_time} at a time");
        }
    }
}
