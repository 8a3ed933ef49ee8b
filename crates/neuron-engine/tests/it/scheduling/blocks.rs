//! Block keys and the block manager by themselves.

use neuron_engine::cache::block_manager::BlockManager;
use neuron_engine::cache::prefix::{BlockKey, extend_keys};
use neuron_engine::sequence::{ImageSpan, Sequence, SequenceId};

/// Keys of `tokens` in blocks of four.
fn keys(tokens: &[u32], salt: u64, images: &[ImageSpan]) -> Vec<BlockKey> {
    let mut sequence = Sequence::new(SequenceId(0), tokens.to_vec(), tokens.len() + 1);
    (sequence.salt, sequence.images) = (salt, images.to_vec());
    let mut keys = Vec::new();
    extend_keys(&mut keys, &sequence, 4);
    keys
}

#[test]
fn a_key_names_a_full_block_and_all_before_it() {
    let text = [1, 2, 3, 4, 5, 6, 7, 8, 9];
    let base = keys(&text, 0, &[]);
    assert_eq!(base.len(), 2, "nine tokens fill two blocks");
    assert_eq!(base, keys(&text, 0, &[]));
    assert_eq!(base, keys(&text[..8], 0, &[]));

    let picture = |start, len, hash| ImageSpan { start, len, hash };
    let changed_from = |other: &[BlockKey]| base.iter().zip(other).position(|(a, b)| a != b);
    for (what, other, first) in [
        ("another last token", keys(&[1, 2, 3, 4, 5, 6, 7, 0], 0, &[]), Some(1)),
        ("another first token changes all that follow", keys(&[0, 2, 3, 4, 5, 6, 7, 8], 0, &[]), Some(0)),
        ("another salt", keys(&text, 1, &[]), Some(0)),
        ("a picture in the second block", keys(&text, 0, &[picture(4, 2, 9)]), Some(1)),
        ("a picture over both", keys(&text, 0, &[picture(3, 2, 9)]), Some(0)),
        ("a picture behind both", keys(&text, 0, &[picture(8, 1, 9)]), None),
    ] {
        assert_eq!(changed_from(&other), first, "{what}");
    }
    let places = [picture(4, 3, 9), picture(5, 3, 9), picture(4, 2, 9), picture(4, 3, 8)].map(|picture| keys(&text, 0, &[picture])[1]);
    let distinct: std::collections::BTreeSet<_> = places.into_iter().collect();
    assert_eq!(distinct.len(), places.len(), "place, length and content of a picture all count");
}

#[test]
fn a_picture_overlaps_the_tokens_it_has_in_common() {
    let image = ImageSpan { start: 4, len: 4, hash: 0 };
    for (start, end, overlaps) in [(0, 4, false), (0, 5, true), (5, 6, true), (7, 12, true), (8, 12, false)] {
        assert_eq!(image.overlaps(start, end), overlaps, "{start}..{end}");
    }
}

#[test]
fn keys_grow_with_the_sequence_as_if_made_at_once() {
    let mut sequence = Sequence::new(SequenceId(0), vec![1, 2, 3], 40);
    let mut grown = Vec::new();
    for token in 4..30 {
        sequence.tokens.push(token);
        extend_keys(&mut grown, &sequence, 4);
    }
    assert_eq!(grown, keys(&sequence.tokens, 0, &[]));
}

#[test]
fn equal_blocks_behind_different_blocks_have_different_keys() {
    let twice = keys(&[1, 2, 3, 4, 1, 2, 3, 4], 0, &[]);
    assert_ne!(twice[0], twice[1]);
}

#[test]
fn blocks_go_out_once_and_come_back() {
    let mut blocks = BlockManager::new(3, 4, true);
    let table: Vec<u32> = (0..3).filter_map(|_| blocks.allocate()).collect();
    assert_eq!(table, [0, 1, 2]);
    assert_eq!(blocks.allocate(), None);
    blocks.check([table.as_slice()]).unwrap();
    blocks.release(&table);
    assert_eq!((blocks.used(), blocks.free()), (0, 3));
    blocks.check([]).unwrap();
}

#[test]
fn a_lookup_tells_idle_blocks_from_used_ones() {
    let keys = keys(&[1, 2, 3, 4, 5, 6, 7, 8], 0, &[]);
    let mut blocks = BlockManager::new(4, 4, true);
    let table: Vec<u32> = (0..2).filter_map(|_| blocks.allocate()).collect();
    blocks.publish(table[0], keys[0]);
    let hit = blocks.lookup(&keys);
    assert_eq!((hit.blocks.as_slice(), hit.idle), (&table[..1], 0));
    blocks.release(&table);
    let hit = blocks.lookup(&keys);
    assert_eq!((hit.blocks.as_slice(), hit.idle), (&table[..1], 1));
    blocks.share(&hit);
    blocks.share(&blocks.lookup(&keys));
    blocks.check([hit.blocks.as_slice(), hit.blocks.as_slice()]).unwrap();
    assert_eq!(blocks.used(), 1);
}

#[test]
fn the_check_sees_what_is_wrong() {
    let mut blocks = BlockManager::new(4, 4, true);
    let (a, b) = (blocks.allocate().unwrap(), blocks.allocate().unwrap());
    for (what, tables) in [
        ("a block in no table", vec![vec![a]]),
        ("a block in two tables that is not cached", vec![vec![a], vec![a, b]]),
        ("a free block in a table", vec![vec![a, b, 3]]),
        ("a block twice in a table", vec![vec![a, b, b]]),
    ] {
        assert!(blocks.check(tables.iter().map(Vec::as_slice)).is_err(), "{what}");
    }
    blocks.check([[a, b].as_slice()]).unwrap();
}
