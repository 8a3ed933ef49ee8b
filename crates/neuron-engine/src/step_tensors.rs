//! One step's numbers in a single upload, laid out so that a captured step can run again with other numbers.

use candle_core::{Result, Tensor};
use neuron_kernels::{DRAWN, PagedBatch, PagedTables};

use crate::batch::{Batch, NewTokens};
use crate::models::{ModelInput, Visual};
use crate::sequence::SequenceMap;

/// How many of everything. Two steps of the same layout differ only in their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// T, padded.
    pub tokens: usize,
    /// S, padded.
    pub sequences: usize,
    /// W, blocks that a row of the table has room for.
    pub table_width: usize,
    /// R, rows that need logits; `None` when every row does.
    pub logit_rows: Option<usize>,
    /// The most new tokens of one sequence.
    pub query_len_max: usize,
}

/// Steps that only decode are padded to one of these, so that few captures serve every batch size.
const SIZES: [usize; 17] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256];
/// The narrowest table, and by how much the next is wider: 2,048 tokens of context, 8,192, 32,768, ..
const TABLE_WIDTH_MIN: usize = 64;
const TABLE_WIDTH_FACTOR: usize = 4;
/// The slot of a row that is only padding.
const NO_SLOT: u32 = u32::MAX;

impl Layout {
    /// The layout of a batch as it is.
    pub fn of(batch: &Batch) -> Self {
        let (tokens, sequences, rows) = (batch.tokens(), batch.sequences.len(), batch.logit_rows().len());
        let widest = batch.sequences.iter().map(|share| share.context_len.div_ceil(batch.block_size)).max().unwrap_or(0);
        let query_len_max = batch.sequences.iter().map(|share| share.tokens.len()).max().unwrap_or(0);
        Self { tokens, sequences, table_width: widest, logit_rows: (rows < tokens).then_some(rows), query_len_max }
    }

    /// The layout to pad to, when the batch only decodes text and is small enough to be captured.
    pub fn captured(&self) -> Option<Self> {
        let decodes = self.query_len_max == 1 && self.logit_rows.is_none();
        let size = SIZES.into_iter().find(|&size| size >= self.sequences).filter(|_| decodes && self.sequences > 0)?;
        let mut table_width = TABLE_WIDTH_MIN;
        while table_width < self.table_width {
            table_width *= TABLE_WIDTH_FACTOR;
        }
        Some(Self { tokens: size, sequences: size, table_width, ..*self })
    }

    fn words(&self) -> usize {
        let Self { tokens, sequences, table_width, logit_rows, .. } = self;
        5 * tokens + 2 * sequences + 1 + sequences * table_width + logit_rows.unwrap_or(0)
    }

    /// The numbers of a batch that fits. `drawn` says which of the tokens drawn last a pending one is; `None` if there is none for it.
    pub fn pack(&self, batch: &Batch, drawn: &SequenceMap<u32>) -> Option<Vec<u32>> {
        let mut words = Vec::with_capacity(self.words());
        for share in &batch.sequences {
            match &share.tokens {
                NewTokens::Known(tokens) => words.extend_from_slice(tokens),
                NewTokens::Pending => words.push(DRAWN | *drawn.get(&share.id)?),
            }
        }
        let mut end = self.tokens;
        words.resize(end, 0);
        for axis in 0..3 {
            words.extend(batch.sequences.iter().flat_map(|share| &share.positions).map(|position| position[axis]));
            end += self.tokens;
            words.resize(end, 0);
        }
        words.extend(batch.slots());
        end += self.tokens;
        words.resize(end, NO_SLOT);
        words.push(0);
        let mut start = 0;
        for i in 0..self.sequences {
            start += batch.sequences.get(i).map_or(self.padding_len(), |share| share.tokens.len() as u32);
            words.push(start);
        }
        words.extend(batch.sequences.iter().map(|share| share.context_len as u32));
        end += 2 * self.sequences + 1;
        words.resize(end, 0);
        for share in &batch.sequences {
            let used = share.blocks.len().min(self.table_width);
            words.extend_from_slice(&share.blocks[..used]);
            end += self.table_width;
            words.resize(end, 0);
        }
        if self.logit_rows.is_some() {
            words.resize(end + (self.sequences - batch.sequences.len()) * self.table_width, 0);
            words.extend(batch.logit_rows());
        }
        words.resize(self.words(), 0);
        Some(words)
    }

    /// New tokens of a padded sequence.
    fn padding_len(&self) -> u32 {
        u32::from(self.tokens == self.sequences)
    }

    /// The numbers as a model reads them, out of the memory that they were uploaded to.
    pub fn view(&self, words: &Tensor, block_size: usize, visual: Option<Visual>) -> Result<ModelInput> {
        let Self { tokens, sequences, table_width, logit_rows, query_len_max } = *self;
        let mut start = 0;
        let mut next = |len: usize| {
            start += len;
            words.narrow(0, start - len, len)
        };
        let (ids, positions, slots) = (next(tokens)?, next(3 * tokens)?, next(tokens)?);
        let (query_starts, context_lens, block_tables) = (next(sequences + 1)?, next(sequences)?, next(sequences * table_width)?);
        let logit_rows = logit_rows.map(next).transpose()?;
        let block_tables = block_tables.reshape((sequences, table_width))?;
        let tables = PagedTables { slots, query_starts, context_lens, block_tables, query_len_max };
        let paged = PagedBatch { block_size, tables: Some(tables), ..PagedBatch::default() };
        Ok(ModelInput { ids, positions: positions.reshape((3, tokens))?, paged, logit_rows, visual })
    }
}
