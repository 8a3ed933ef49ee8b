//! A device whose "keys and values" tell exactly what they were computed from, and whose model reads them through the block
//! tables. Whatever a table gets wrong changes the answers, or is caught on the way.

use neuron_engine::batch::{Batch, BatchSequence, NewTokens};
use neuron_engine::sequence::{Sequence, SequenceId, SequenceMap};

/// The content of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    token: u32,
    position: [u32; 3],
    salt: u64,
    /// Folds the token, its picture and everything before it.
    chain: u64,
}

/// The slots of a cache, and a model of `vocabulary` tokens.
pub(crate) struct Device {
    cells: Vec<Option<Cell>>,
    /// What the last step drew.
    drawn: SequenceMap<u32>,
    vocabulary: u32,
}

impl Device {
    pub(crate) fn new(slots: usize, vocabulary: u32) -> Self {
        Self { cells: vec![None; slots], drawn: SequenceMap::default(), vocabulary }
    }

    /// Computes a step; gives a token for each share that asks for one. It forgets what earlier steps drew: a pending token is
    /// always one of the step just before.
    pub(crate) fn run(&mut self, batch: &Batch, salt: impl Fn(SequenceId) -> u64) -> Vec<Option<u32>> {
        let drawn = std::mem::take(&mut self.drawn);
        let tokens: Vec<Option<u32>> = batch.sequences.iter().map(|share| self.run_one(batch, share, &drawn, salt(share.id))).collect();
        self.drawn = batch.sequences.iter().zip(&tokens).filter_map(|(share, token)| Some((share.id, (*token)?))).collect();
        tokens
    }

    fn run_one(&mut self, batch: &Batch, share: &BatchSequence, drawn: &SequenceMap<u32>, salt: u64) -> Option<u32> {
        let tokens = match &share.tokens {
            NewTokens::Known(tokens) => tokens.clone(),
            NewTokens::Pending => vec![drawn[&share.id]],
        };
        let slot = |index: usize| share.blocks[index / batch.block_size] as usize * batch.block_size + index % batch.block_size;
        for (row, &token) in tokens.iter().enumerate() {
            let index = share.start + row;
            let before = index.checked_sub(1).map(|index| self.cells[slot(index)].expect("an unwritten slot was read").chain);
            let position = share.positions[row];
            let picture = share.images.iter().find(|part| (part.row..part.row + part.len).contains(&row));
            let picture = picture.map(|part| (part.image.hash, part.offset + row - part.row));
            let chain = fold(before.unwrap_or(0), token, position, picture);
            self.cells[slot(index)] = Some(Cell { token, position, salt, chain });
        }
        let last = self.cells[slot(share.context_len - 1)].expect("just written");
        share.sample.as_ref().map(|_| draw(last.chain, self.vocabulary))
    }

    /// Whether the cache, read through the table of `share`, holds just what `sequence` says.
    pub(crate) fn compare(&self, batch: &Batch, share: &BatchSequence, sequence: &Sequence) -> Result<(), String> {
        for (index, expected) in cells(sequence).take(share.context_len).enumerate() {
            let slot = share.blocks[index / batch.block_size] as usize * batch.block_size + index % batch.block_size;
            if self.cells[slot] != Some(expected) {
                return Err(format!("token {index} of {:?}: slot {slot} holds {:?}, not {expected:?}", sequence.id, self.cells[slot]));
            }
        }
        Ok(())
    }

    /// Whether the answer of `sequence` is the one that the model gives when nothing is cached, shared or cut in pieces.
    pub(crate) fn compare_answer(&self, sequence: &Sequence) -> Result<(), String> {
        let drawn: Vec<u32> = cells(sequence).skip(sequence.prompt_len - 1).map(|cell| draw(cell.chain, self.vocabulary)).collect();
        let answer = sequence.answer();
        if drawn[..answer.len()] == *answer { Ok(()) } else { Err(format!("{:?} answered {answer:?}, not {drawn:?}", sequence.id)) }
    }
}

/// What the cache should hold of a sequence, straight from its tokens.
fn cells(sequence: &Sequence) -> impl Iterator<Item = Cell> {
    let mut chain = 0;
    sequence.tokens.iter().enumerate().map(move |(index, &token)| {
        let position = match (&sequence.positions, index < sequence.prompt_len) {
            (Some(positions), true) => positions[index],
            (Some(_), false) => [(index as i64 + i64::from(sequence.rope_delta)) as u32; 3],
            (None, _) => [index as u32; 3],
        };
        let picture = sequence.images.iter().find(|image| (image.start..image.start + image.len).contains(&index));
        chain = fold(chain, token, position, picture.map(|image| (image.hash, index - image.start)));
        Cell { token, position, salt: sequence.salt, chain }
    })
}

fn fold(chain: u64, token: u32, position: [u32; 3], picture: Option<(u64, usize)>) -> u64 {
    let (picture, row) = picture.map_or((0, 0), |(hash, row)| (hash + 1, row as u64 + 1));
    let parts = [u64::from(token), u64::from(position[0]), u64::from(position[1]), u64::from(position[2]), picture, row];
    parts.iter().fold(chain, |chain, part| mix(chain ^ mix(part + 1)))
}

fn draw(chain: u64, vocabulary: u32) -> u32 {
    (mix(chain) % u64::from(vocabulary)) as u32
}

/// Scrambles 64 bits (the finisher of splitmix64).
pub(crate) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
