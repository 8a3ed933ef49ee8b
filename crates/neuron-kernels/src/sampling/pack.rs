//! What a step tells the device, in one upload: rows, then edits, then masks.

use super::Row;
use super::outcome::NONE;

/// Words of a row, of an edit.
pub(super) const ROW_WORDS: usize = 18;
pub(super) const EDIT_WORDS: usize = 3;

/// The kinds of rows, by what they cost.
const GREEDY: u32 = 0;
const PLAIN: u32 = 1;
const FILTERED: u32 = 2;

/// One step's rows as words, and what they have in common.
pub(super) struct Packed {
    pub(super) words: Vec<u32>,
    pub(super) rows: usize,
    pub(super) vocabulary: usize,
    /// Edits of all rows, of the row with most.
    pub(super) edits: usize,
    pub(super) edits_max: usize,
    /// Whether any row reports log-probabilities.
    pub(super) reports: bool,
    /// Whether any row draws, or only takes the best.
    pub(super) draws: bool,
    /// Whether any row ranks its tokens.
    pub(super) ranks: bool,
}

impl Packed {
    pub(super) fn new(rows: &[Row<'_>], vocabulary: usize) -> Self {
        let mut packed = Self {
            words: Vec::with_capacity(rows.len() * ROW_WORDS),
            rows: rows.len(),
            vocabulary,
            edits: 0,
            edits_max: 0,
            reports: rows.iter().any(|row| row.logprobs.is_some()),
            draws: false,
            ranks: false,
        };
        let (mut masks, mut reports) = (0, 0);
        let next = |present: bool, count: &mut u32| match present {
            true => std::mem::replace(count, *count + 1),
            false => NONE,
        };
        for row in rows {
            let mask = next(row.allowed.is_some(), &mut masks);
            let report = next(row.logprobs.is_some(), &mut reports);
            packed.row(row, mask, report);
        }
        for edit in rows.iter().flat_map(|row| &row.edits) {
            packed.words.extend([edit.token, edit.seen, edit.bias.to_bits()]);
        }
        for allowed in rows.iter().filter_map(|row| row.allowed) {
            let words = allowed.iter().copied().chain(std::iter::repeat(0)).take(vocabulary.div_ceil(64));
            packed.words.extend(words.flat_map(halves));
        }
        packed
    }

    fn row(&mut self, row: &Row<'_>, mask: u32, report: u32) {
        let (top_k, top_p) = (row.top_k(self.vocabulary), row.top_p());
        let kind = match (row.temperature > 0.0, top_k.is_some() || top_p.is_some()) {
            (false, _) => GREEDY,
            (true, false) => PLAIN,
            (true, true) => FILTERED,
        };
        self.words.extend(halves(row.uniform));
        self.words.extend(halves(top_p.unwrap_or(0)));
        self.words.extend([kind, top_k.unwrap_or(0) as u32, top_p.is_some().into()]);
        let floats = [row.temperature, row.min_weight(), row.repetition_penalty, row.frequency_penalty, row.presence_penalty];
        self.words.extend(floats.map(f32::to_bits));
        self.words.extend([self.edits as u32, row.edits.len() as u32, mask, report, row.logprobs.unwrap_or(0).into(), 0]);
        self.edits += row.edits.len();
        self.edits_max = self.edits_max.max(row.edits.len());
        self.draws |= kind != GREEDY;
        self.ranks |= kind == FILTERED;
    }

    /// Where the edits begin, where the masks do.
    pub(super) fn edits_start(&self) -> usize {
        self.rows * ROW_WORDS
    }

    pub(super) fn masks_start(&self) -> usize {
        self.edits_start() + self.edits * EDIT_WORDS
    }
}

/// As a 64-bit number lies in memory.
fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}
