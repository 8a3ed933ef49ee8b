//! Which part of a checkpoint's tensor is wanted, and where it lies.

use std::ops::Range;

/// A tensor by name, with the shape that the configuration implies, or a slice of it along one dimension.
#[derive(Clone, Debug)]
pub struct Part {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    dim: usize,
    range: Range<usize>,
}

impl Part {
    /// All of the tensor.
    pub fn whole(name: impl Into<String>, shape: &[usize]) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), dim: 0, range: 0..shape.first().copied().unwrap_or(1) }
    }

    /// The slice `range` along `dim`. Panics unless it lies inside the shape.
    pub fn slice(name: impl Into<String>, shape: &[usize], dim: usize, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= shape[dim], "slice {range:?} of dimension {dim} of {shape:?}");
        Self { name: name.into(), shape: shape.to_vec(), dim, range }
    }

    /// The shape of the slice.
    pub fn slice_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if let Some(len) = shape.get_mut(self.dim) {
            *len = self.range.len();
        }
        shape
    }

    /// How many elements the slice has.
    pub fn elements(&self) -> usize {
        self.slice_shape().iter().product()
    }

    /// The slice as runs of neighbouring elements: (first element, how many).
    pub(super) fn runs(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let outer: usize = self.shape.iter().take(self.dim).product();
        let inner: usize = self.shape.iter().skip(self.dim + 1).product();
        let stride = self.shape.get(self.dim).copied().unwrap_or(1) * inner;
        let (first, len) = (self.range.start * inner, self.range.len() * inner);
        (0..outer).map(move |row| (row * stride + first, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_as_few_runs_as_its_dimension_allows() {
        let cases = [
            (Part::whole("x", &[4, 6]), vec![4, 6], vec![(0, 24)]),
            (Part::slice("x", &[4, 6], 0, 1..3), vec![2, 6], vec![(6, 12)]),
            (Part::slice("x", &[3, 6], 1, 2..4), vec![3, 2], vec![(2, 2), (8, 2), (14, 2)]),
            (Part::slice("x", &[2, 3, 4], 1, 1..2), vec![2, 1, 4], vec![(4, 4), (16, 4)]),
            (Part::whole("x", &[]), vec![], vec![(0, 1)]),
        ];
        for (part, shape, runs) in cases {
            assert_eq!((part.slice_shape(), part.runs().collect()), (shape, runs), "{part:?}");
        }
    }
}
