//! Looking for markers in text that is still coming.

/// The marker that starts first, and where; of those that start at the same place, the one named first.
pub(super) fn first_marker<'m>(text: &str, markers: &[&'m str]) -> Option<(usize, &'m str)> {
    let found = markers.iter().filter_map(|marker| text.find(marker).map(|at| (at, *marker)));
    found.min_by_key(|(at, _)| *at)
}

/// Where the longest ending starts that is the beginning of a marker, though not a whole one; the text's end if there is none.
pub(in crate::text) fn undecided<M: AsRef<str>>(text: &str, markers: &[M]) -> usize {
    let longest = markers.iter().map(|marker| marker.as_ref().len()).max().unwrap_or(0);
    let earliest = (text.len() + 1).saturating_sub(longest);
    let mut starts = (earliest..text.len()).filter(|&at| text.is_char_boundary(at));
    starts.find(|&at| markers.iter().any(|marker| marker.as_ref().starts_with(&text[at..]))).unwrap_or(text.len())
}
