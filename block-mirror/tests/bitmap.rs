//! The bitmap against a plain set, and its file against what was written.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use block_mirror::Bitmap;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Set(Range<u64>),
    Clear(Range<u64>),
    Next(u64),
    Run(u64, u64),
    Grow(u64),
    Reload,
}

fn range() -> impl Strategy<Value = Range<u64>> {
    (0u64..20_000, prop_oneof![Just(1u64), 0..200u64, 0..20_000u64]).prop_map(|(a, n)| a..a + n)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => range().prop_map(Op::Set),
        4 => range().prop_map(Op::Clear),
        3 => (0u64..21_000).prop_map(Op::Next),
        3 => (0u64..21_000, 0u64..500).prop_map(|(from, max)| Op::Run(from, max)),
        1 => (0u64..20_000).prop_map(Op::Grow),
        1 => Just(Op::Reload),
    ]
}

fn clip(range: &Range<u64>, bits: u64) -> Range<u64> {
    range.start.min(bits)..range.end.min(bits)
}

fn run(mapped: bool, bits: u64, ops: Vec<Op>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bitmap");
    let mut bitmap = if mapped { Bitmap::mapped(&path, bits).unwrap() } else { Bitmap::heap(bits).unwrap() };
    let mut model = BTreeSet::new();
    for op in ops {
        match op {
            Op::Set(range) => {
                let range = clip(&range, bitmap.len());
                let newly = range.clone().filter(|bit| model.insert(*bit)).count() as u64;
                assert_eq!(bitmap.set_range(range), newly);
            }
            Op::Clear(range) => {
                let cleared = range.clone().filter(|bit| model.remove(bit)).count() as u64;
                assert_eq!(bitmap.clear_range(range), cleared);
            }
            Op::Next(from) => assert_eq!(bitmap.next_dirty(from), model.range(from..).next().copied()),
            Op::Run(from, max) => {
                let expected = model.range(from..).next().map(|start| {
                    let mut end = start + 1;
                    while end < start + max.max(1) && model.contains(&end) {
                        end += 1;
                    }
                    *start..end
                });
                assert_eq!(bitmap.next_dirty_run(from, max), expected);
            }
            Op::Grow(bits) => bitmap.grow(bits).unwrap(),
            Op::Reload if mapped => {
                let (bits, granularity) = (bitmap.len(), bitmap.granularity());
                drop(bitmap);
                bitmap = Bitmap::load(&path).unwrap();
                assert_eq!((bitmap.len(), bitmap.granularity()), (bits, granularity));
            }
            Op::Reload => {}
        }
        bitmap.check_invariants();
        assert_eq!(bitmap.count(), model.len() as u64);
    }
    let mut found = BTreeSet::new();
    let mut from = 0;
    while let Some(bit) = bitmap.next_dirty(from) {
        assert!(bitmap.is_set(bit));
        found.insert(bit);
        from = bit + 1;
    }
    assert_eq!(found, model);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_a_set_of_bits(mapped: bool, bits in 0u64..20_000, ops in prop::collection::vec(op(), 0..60)) {
        run(mapped, bits, ops);
    }
}

#[test]
fn a_file_that_is_not_a_bitmap_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bitmap");
    let refused = |bytes: &[u8], reason: &str| {
        std::fs::write(&path, bytes).unwrap();
        let error = Bitmap::load(&path).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    };
    refused(b"", "shorter than its header");
    refused(&[7; 5000], "wrong magic");
    drop(Bitmap::mapped(&path, 100_000).unwrap());
    let good = std::fs::read(&path).unwrap();
    refused(&good[..8192], "cut short");
    let mut other = good.clone();
    other[8] = 9;
    refused(&other, "version 9");
    let mut other = good;
    other[23] = 1;
    refused(&other, "larger than the largest");
    assert!(Bitmap::load(&dir.path().join("absent")).is_err());
}

#[test]
fn concurrent_setters_lose_nothing_to_a_drainer() {
    let bitmap = Bitmap::heap(64 * 64 * 4).unwrap();
    let drained = std::sync::Mutex::new(BTreeSet::new());
    let drain = |bitmap: &Bitmap| {
        let mut from = 0;
        while let Some(bit) = bitmap.next_dirty(from) {
            if bitmap.clear(bit) {
                drained.lock().unwrap().insert(bit);
            }
            from = bit + 1;
        }
    };
    std::thread::scope(|scope| {
        let setters: Vec<_> = (0..2u64)
            .map(|half| {
                let bitmap = &bitmap;
                scope.spawn(move || (half..bitmap.len()).step_by(2).for_each(|bit| assert!(bitmap.set(bit))))
            })
            .collect();
        while !setters.iter().all(|setter| setter.is_finished()) {
            drain(&bitmap);
        }
    });
    drain(&bitmap);
    assert_eq!(drained.into_inner().unwrap().len() as u64, bitmap.len());
    bitmap.check_invariants();
}

/// Two threads walk the words side by side: one sets a bit of each, the other clears the word's
/// last set bit, which takes the summary bit away.
#[test]
fn a_word_emptied_and_filled_at_once_is_still_found() {
    let bitmap = Bitmap::heap(64 * 5_000).unwrap();
    for round in 0..4 {
        for word in 0..5_000 {
            bitmap.set(word * 64);
        }
        let positions = [AtomicU64::new(0), AtomicU64::new(0)];
        let walk = |me: usize, step: &dyn Fn(u64)| {
            let mut spins = 0;
            for word in 0..5_000 {
                positions[me].store(word, Ordering::SeqCst);
                while positions[1 - me].load(Ordering::SeqCst) < word {
                    spins += 1;
                    // The other may be waiting for this processor.
                    if spins % 1000 == 0 { std::thread::yield_now() } else { std::hint::spin_loop() }
                }
                step(word);
            }
            positions[me].store(5_000, Ordering::SeqCst);
        };
        std::thread::scope(|scope| {
            scope.spawn(|| walk(0, &|word| assert!(bitmap.set(word * 64 + 1), "round {round}")));
            scope.spawn(|| walk(1, &|word| assert!(bitmap.clear(word * 64), "round {round}")));
        });
        bitmap.check_invariants();
        assert_eq!(bitmap.count(), 5_000);
        assert_eq!(bitmap.clear_range(0..bitmap.len()), 5_000);
    }
}
